"""The layers of the models, with leaves named as in Hugging Face.

In shapes, b is rows, t tokens, s slots of the cache, D the hidden size, h query heads, k key and
value heads, and d the size of a head. Kernels are (in, out).
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
# The keys and values of a cache (b, k, s, d), and its first free slot.
Past = tuple[Array, Array, Array]


class Linear(nnx.Module):
    """``x K + b``, with an optional bias."""

    def __init__(self, in_size: int, out_size: int, bias: bool, dtype: Any, rngs: nnx.Rngs):
        self.kernel = nnx.Param(_normal(rngs.params(), (in_size, out_size), dtype))
        self.bias = nnx.Param(jnp.zeros(out_size, dtype)) if bias else None

    def __call__(self, x: Float[Array, "b t i"]) -> Float[Array, "b t o"]:
        y = x @ self.kernel[...].astype(x.dtype)
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)[None, None, :]


class Embed(nnx.Module):
    """An embedding (V, D), which may also serve as a tied head."""

    def __init__(self, rows: int, size: int, dtype: Any, rngs: nnx.Rngs, scale: float = 1.0):
        self.embedding = nnx.Param(_normal(rngs.params(), (rows, size), dtype))
        self.scale = scale

    def __call__(self, tokens: Integer[Array, "b t"]) -> Float[Array, "b t D"]:
        # A token outside the vocabulary gives NaN instead of the row of another token.
        rows = jnp.take(self.embedding[...], tokens, axis=0, mode="fill")
        return rows if self.scale == 1 else rows * jnp.asarray(self.scale, rows.dtype)

    def attend(self, x: Float[Array, "b t D"]) -> Float[Array, "b t V"]:
        """Returns ``x Eᵀ``, the logits of a tied model."""
        return x @ self.embedding[...].astype(x.dtype).T


class RMSNorm(nnx.Module):
    """``x/√(mean x² + ε) · w``; in Gemma ``· (1 + w)``, rounded only after the product."""

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
    """``(x − mean x)/√(var x + ε) · w + b``, rounded only at the end."""

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
    """Grouped-query attention with rotary position embeddings."""

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
        angles: tuple[Float[Array, "b t d"], Float[Array, "b t d"]],
        mask: Bool[Array, "b t s"],
    ) -> tuple[Float[Array, "b t D"], tuple[Array, Array]]:
        """Returns the attention output, and the keys and values (b, k, s, d)."""
        q, k, v = (
            heads_of(proj(x), self.head_dim) for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        q = q if self.q_norm is None else self.q_norm(q)
        k = k if self.k_norm is None else self.k_norm(k)
        q, k = rotate(q, *angles), rotate(k, *angles)
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
    """Attention and feed-forward with pre-norms and residual connections."""

    def __init__(self, config: DecoderConfig, dtype: Any, rngs: nnx.Rngs):
        self.self_attn = Attention(config, dtype, rngs)
        self.mlp = MLP(config, dtype, rngs)
        self.input_layernorm = RMSNorm(config.hidden_size, config, dtype)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config, dtype)

    def __call__(
        self,
        x: Float[Array, "b t D"],
        past: Past | None,
        angles: tuple[Array, Array],
        mask: Bool[Array, "b t s"],
    ) -> tuple[Float[Array, "b t D"], tuple[Array, Array]]:
        seen, memory = self.self_attn(self.input_layernorm(x), past, angles, mask)
        x = x + seen
        return x + self.mlp(self.post_attention_layernorm(x)), memory


def _normal(key: Key[Array, ""], shape: tuple[int, int], dtype: Any) -> Array:
    """Draws normal numbers with transformers' standard deviation."""
    return 0.02 * jax.random.normal(key, shape, dtype)


def heads_of(x: Float[Array, "b t hd"], size: int) -> Float[Array, "b t h d"]:
    """Splits concatenated heads."""
    return x.reshape(*x.shape[:2], -1, size)


def remember(
    past: Past | None, new_keys: Float[Array, "b k t d"], new_values: Float[Array, "b k t d"]
) -> tuple[Float[Array, "b k s d"], Float[Array, "b k s d"]]:
    """Writes new keys and values into their slots of the cache.

    Args:
        past: The keys, the values and the first free slot of the cache; None without a cache.
        new_keys: The keys of the new tokens.
        new_values: The values of the new tokens.

    Returns:
        All keys and values; only the new ones without a cache.
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
    """Computes attention, ``softmax(scale · q kᵀ) v``; each k and v head serves a group of q heads.

    Args:
        q: The queries.
        keys: The keys.
        values: The values.
        mask: Which slots each token attends to.
        scale: The factor of the scores, usually ``1/√d``.

    Returns:
        The attention output, with concatenated heads.
    """
    rows, count, heads, size = q.shape
    grouped = q.reshape(rows, count, keys.shape[1], -1, size)
    scores = jnp.einsum("btkgd,bksd->bkgts", grouped, keys) * scale
    wide = widened(scores.dtype)
    lowest = jnp.finfo(wide).min
    scores = jnp.where(mask[:, None, None, :, :], scores.astype(wide), lowest)
    weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
    return jnp.einsum("bkgts,bksd->btkgd", weights, values).reshape(rows, count, heads * size)
