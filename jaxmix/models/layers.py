"""The layers that the models share, and the decoder's; leaves named as Hugging Face names them.

In shapes: b rows, t tokens, s slots of the cache, D the hidden size, h heads of the queries, k of
keys and values, d the size of a head. A kernel is (in, out).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Integer, Key

from jaxmix.models.config import DecoderConfig
from jaxmix.models.rope import rotate, widened

__all__ = [
    "ACTIVATIONS",
    "MLP",
    "Attention",
    "Embed",
    "Layer",
    "LayerNorm",
    "Linear",
    "Past",
    "RMSNorm",
    "attend",
    "heads_of",
    "remember",
]

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
}
# The keys and values of a cache (b, k, s, d), and the first slot that is free.
Past = tuple[Array, Array, Array]


class Linear(nnx.Module):
    """``x K + b``, the bias only where there is one."""

    def __init__(self, in_size: int, out_size: int, bias: bool, dtype: Any, rngs: nnx.Rngs):
        self.kernel = nnx.Param(_normal(rngs.params(), (in_size, out_size), dtype))
        self.bias = nnx.Param(jnp.zeros(out_size, dtype)) if bias else None

    def __call__(self, x: Float[Array, "b t i"]) -> Float[Array, "b t o"]:
        y = x @ self.kernel[...].astype(x.dtype)
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)[None, None, :]


class Embed(nnx.Module):
    """Rows of an embedding (V, D), which may make the logits too."""

    def __init__(self, rows: int, size: int, dtype: Any, rngs: nnx.Rngs, scale: float = 1.0):
        self.embedding = nnx.Param(_normal(rngs.params(), (rows, size), dtype))
        self.scale = scale

    def __call__(self, tokens: Integer[Array, "b t"]) -> Float[Array, "b t D"]:
        # A token that is not in the vocabulary gives NaN, and not some other token's row.
        rows = jnp.take(self.embedding[...], tokens, axis=0, mode="fill")
        return rows if self.scale == 1 else rows * jnp.asarray(self.scale, rows.dtype)

    def attend(self, x: Float[Array, "b t D"]) -> Float[Array, "b t V"]:
        """``x Eᵀ``, the logits of a tied model."""
        return x @ self.embedding[...].astype(x.dtype).T


class RMSNorm(nnx.Module):
    """``x/√(mean x² + ε) · w``; in Gemma ``· (1 + w)``, which is rounded only after the product."""

    def __init__(self, size: int, config: DecoderConfig, dtype: Any):
        self.scale = nnx.Param(jnp.full(size, 1 - config.norm_offset, dtype))
        self.epsilon, self.offset = config.rms_norm_eps, config.norm_offset

    def __call__(self, x: Float[Array, "*b n"]) -> Float[Array, "*b n"]:
        wide = widened(x.dtype)
        y = x.astype(wide)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.epsilon)
        scale = jnp.expand_dims(self.scale[...], range(x.ndim - 1))
        if self.offset:
            return (y * (self.offset + scale.astype(wide))).astype(x.dtype)
        return y.astype(x.dtype) * scale.astype(x.dtype)


class LayerNorm(nnx.Module):
    """``(x − mean x)/√(var x + ε) · w + b``, rounded at the end."""

    def __init__(self, size: int, epsilon: float, dtype: Any):
        self.scale = nnx.Param(jnp.ones(size, dtype))
        self.bias = nnx.Param(jnp.zeros(size, dtype))
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "b t n"]) -> Float[Array, "b t n"]:
        y = x.astype(widened(x.dtype))
        y = y - jnp.mean(y, axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.epsilon)
        scale, bias = (leaf[...].astype(y.dtype)[None, None, :] for leaf in (self.scale, self.bias))
        return (y * scale + bias).astype(x.dtype)


class Attention(nnx.Module):
    """Grouped-query attention, its queries and keys turned by their positions."""

    def __init__(self, config: DecoderConfig, dtype: Any, rngs: nnx.Rngs):
        hidden, size = config.hidden_size, config.head_dim
        queries, keys = config.num_attention_heads * size, config.num_key_value_heads * size
        self.q_proj = Linear(hidden, queries, config.qkv_bias, dtype, rngs)
        self.k_proj = Linear(hidden, keys, config.qkv_bias, dtype, rngs)
        self.v_proj = Linear(hidden, keys, config.qkv_bias, dtype, rngs)
        self.o_proj = Linear(queries, hidden, config.o_bias, dtype, rngs)
        self.q_norm = RMSNorm(size, config, dtype) if config.qk_norm else None
        self.k_norm = RMSNorm(size, config, dtype) if config.qk_norm else None
        self.head_dim = size

    def __call__(
        self,
        x: Float[Array, "b t D"],
        past: Past | None,
        turn: tuple[Float[Array, "b t d"], Float[Array, "b t d"]],
        mask: Bool[Array, "b t s"],
    ) -> tuple[Float[Array, "b t D"], tuple[Array, Array]]:
        """What the tokens take from what they see, and the keys and values (b, k, s, d)."""
        q, k, v = (
            heads_of(proj(x), self.head_dim) for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        q = q if self.q_norm is None else self.q_norm(q)
        k = k if self.k_norm is None else self.k_norm(k)
        q, k = rotate(q, *turn), rotate(k, *turn)
        new = k.swapaxes(1, 2), v.swapaxes(1, 2)
        keys, values = remember(past, *new)
        seen = attend(q, keys, values, mask, self.head_dim**-0.5)
        return self.o_proj(seen), (keys, values)


class MLP(nnx.Module):
    """``down(act(gate x) ⊙ up x)``."""

    def __init__(self, config: DecoderConfig, dtype: Any, rngs: nnx.Rngs):
        hidden, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = Linear(hidden, inner, bias, dtype, rngs)
        self.up_proj = Linear(hidden, inner, bias, dtype, rngs)
        self.down_proj = Linear(inner, hidden, bias, dtype, rngs)
        self.activation = config.activation

    def __call__(self, x: Float[Array, "b t D"]) -> Float[Array, "b t D"]:
        return self.down_proj(ACTIVATIONS[self.activation](self.gate_proj(x)) * self.up_proj(x))


class Layer(nnx.Module):
    """Attention and feed-forward, each normed before and added to what went in."""

    def __init__(self, config: DecoderConfig, dtype: Any, rngs: nnx.Rngs):
        self.self_attn = Attention(config, dtype, rngs)
        self.mlp = MLP(config, dtype, rngs)
        self.input_layernorm = RMSNorm(config.hidden_size, config, dtype)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config, dtype)

    def __call__(
        self,
        x: Float[Array, "b t D"],
        past: Past | None,
        turn: tuple[Array, Array],
        mask: Bool[Array, "b t s"],
    ) -> tuple[Float[Array, "b t D"], tuple[Array, Array]]:
        seen, memory = self.self_attn(self.input_layernorm(x), past, turn, mask)
        x = x + seen
        return x + self.mlp(self.post_attention_layernorm(x)), memory


def _normal(key: Key[Array, ""], shape: tuple[int, int], dtype: Any) -> Array:
    """Normal numbers of transformers' stddev."""
    return 0.02 * jax.random.normal(key, shape, dtype)


def heads_of(x: Float[Array, "b t hd"], size: int) -> Float[Array, "b t h d"]:
    """The heads side by side, taken apart."""
    return x.reshape(*x.shape[:2], -1, size)


def remember(
    past: Past | None, new_keys: Float[Array, "b k t d"], new_values: Float[Array, "b k t d"]
) -> tuple[Float[Array, "b k s d"], Float[Array, "b k s d"]]:
    """The keys and values with the new ones in their slots; just these where nothing came before.

    Args:
        past: Those of the cache.
        new_keys: Of the tokens of this call.
        new_values: Likewise.

    Returns:
        Keys and values.
    """
    if past is None:
        return new_keys, new_values
    keys, values, start = past
    zero = jnp.zeros_like(start)
    at = (zero, zero, start, zero)
    return (
        jax.lax.dynamic_update_slice(keys, new_keys, at),
        jax.lax.dynamic_update_slice(values, new_values, at),
    )


def attend(
    q: Float[Array, "b t h d"],
    keys: Float[Array, "b k s d"],
    values: Float[Array, "b k s d"],
    mask: Bool[Array, "b t s"],
    scale: float,
) -> Float[Array, "b t hd"]:
    """``softmax(scale · q kᵀ) v``, each head of k and v for a group of the queries'.

    Args:
        q: queries.
        keys: keys.
        values: Values.
        mask: What each token sees.
        scale: What the scores are multiplied with, as a rule ``1/√d``.

    Returns:
        What each token takes, its heads side by side.
    """
    rows, count, heads, size = q.shape
    grouped = q.reshape(rows, count, keys.shape[1], -1, size)
    scores = jnp.einsum("btkgd,bksd->bkgts", grouped, keys) * scale
    wide = widened(scores.dtype)
    lowest = jnp.finfo(wide).min
    scores = jnp.where(mask[:, None, None, :, :], scores.astype(wide), lowest)
    weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
    return jnp.einsum("bkgts,bksd->btkgd", weights, values).reshape(rows, count, heads * size)
