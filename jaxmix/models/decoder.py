"""A decoder in NNX whose tree keeps Hugging Face's names: Llama, Mistral, Qwen2, Qwen3, Gemma.

Paths read ``model.layers.0.self_attn.q_proj.kernel``. Flax's orientation: a kernel is (in, out),
the transpose of PyTorch's weight. Activations are in the embedding's dtype; every leaf is cast to it
on use. Norms, softmax and angles are computed in float32, or in float64 where that is the dtype.

In shapes: b rows, t tokens, s slots of the cache, D the hidden size, h heads, d the size of a head.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, overload

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from jaxmix.errors import ShapeError
from jaxmix.models.config import DecoderConfig
from jaxmix.models.rope import rotate, widened

__all__ = ["Cache", "Decoder", "assemble", "leaf_paths"]

_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cache:
    """The keys and values of the tokens so far, in a fixed number of slots.

    Args:
        keys: of each layer, already turned (b, kv heads, s, d).
        values: of each layer.
        visible: which slots hold a token that may be seen (b, s); padding may not.
        length: how many slots are taken, the same in all rows.

    Example:
        >>> import jax.numpy as jnp
        >>> config = DecoderConfig.from_dict(
        ...     dict(
        ...         model_type="llama",
        ...         vocab_size=11,
        ...         hidden_size=8,
        ...         intermediate_size=12,
        ...         num_hidden_layers=2,
        ...         num_attention_heads=4,
        ...     )
        ... )
        >>> cache = Cache.empty(config, 1, 5, jnp.float32)
        >>> cache.keys[1].shape, int(cache.length)
        ((1, 4, 5, 2), 0)
    """

    keys: tuple[Float[Array, "b k s d"], ...]
    values: tuple[Float[Array, "b k s d"], ...]
    visible: Bool[Array, "b s"]
    length: Int[Array, ""]

    @staticmethod
    def empty(config: DecoderConfig, rows: int, slots: int, dtype: Any) -> "Cache":
        """A cache that holds nothing.

        Args:
            config: the decoder's.
            rows: b.
            slots: s, as many as there will be tokens, padding included.
            dtype: the activations', ``model.dtype``.

        Returns:
            The cache, of zeros.
        """
        shape = (rows, config.num_key_value_heads, slots, config.head_dim)
        zeros = tuple(jnp.zeros(shape, dtype) for _ in range(config.num_hidden_layers))
        return Cache(zeros, zeros, jnp.zeros((rows, slots), bool), jnp.zeros((), jnp.int32))


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

    def __init__(self, config: DecoderConfig, dtype: Any, rngs: nnx.Rngs):
        shape = (config.vocab_size, config.hidden_size)
        self.embedding = nnx.Param(_normal(rngs.params(), shape, dtype))
        self.scale = config.embed_scale

    def __call__(self, tokens: Int[Array, "b t"]) -> Float[Array, "b t D"]:
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
        turn: tuple[Float[Array, "b t d"], Float[Array, "b t d"]],
        mask: Bool[Array, "b t s"],
        store: Callable[[Array, Array], tuple[Array, Array]],
    ) -> Float[Array, "b t D"]:
        """Attends to what ``store`` makes of the new keys and values (b, k, t, d): all of them."""
        q, k, v = (
            proj(x).reshape(*x.shape[:2], -1, self.head_dim)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        q = q if self.q_norm is None else self.q_norm(q)
        k = k if self.k_norm is None else self.k_norm(k)
        q, k = rotate(q, *turn), rotate(k, *turn)
        keys, values = store(k.swapaxes(1, 2), v.swapaxes(1, 2))
        return self.o_proj(_attend(q, keys, values, mask))


class MLP(nnx.Module):
    """``down(act(gate x) ⊙ up x)``."""

    def __init__(self, config: DecoderConfig, dtype: Any, rngs: nnx.Rngs):
        hidden, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = Linear(hidden, inner, bias, dtype, rngs)
        self.up_proj = Linear(hidden, inner, bias, dtype, rngs)
        self.down_proj = Linear(inner, hidden, bias, dtype, rngs)
        self.activation = config.activation

    def __call__(self, x: Float[Array, "b t D"]) -> Float[Array, "b t D"]:
        return self.down_proj(_ACTIVATIONS[self.activation](self.gate_proj(x)) * self.up_proj(x))


class Layer(nnx.Module):
    """Attention and feed-forward, each normed before and added to what went in."""

    def __init__(self, config: DecoderConfig, dtype: Any, rngs: nnx.Rngs):
        self.self_attn = Attention(config, dtype, rngs)
        self.mlp = MLP(config, dtype, rngs)
        self.input_layernorm = RMSNorm(config.hidden_size, config, dtype)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config, dtype)

    def __call__(self, x: Float[Array, "b t D"], *how: Any) -> Float[Array, "b t D"]:
        x = x + self.self_attn(self.input_layernorm(x), *how)
        return x + self.mlp(self.post_attention_layernorm(x))


class Stack(nnx.Module):
    """The decoder without its head: tokens to hidden states."""

    def __init__(self, config: DecoderConfig, dtype: Any, rngs: nnx.Rngs):
        self.embed_tokens = Embed(config, dtype, rngs)
        self.layers = nnx.List(Layer(config, dtype, rngs) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config, dtype)
        self.config = config

    def __call__(
        self, tokens: Int[Array, "b t"], positions: Int[Array, "b t"] | None, cache: Cache | None
    ) -> tuple[Float[Array, "b t D"], Cache | None]:
        """The hidden states after the last norm, and the cache with these tokens in it."""
        _check(tokens, positions, cache)
        config, (rows, count) = self.config, tokens.shape
        start = 0 if cache is None else cache.length
        slots = start + jnp.arange(count, dtype=jnp.int32)
        if positions is None:
            positions = jnp.broadcast_to(slots[None, :], (rows, count))
        visible = positions >= 0
        if cache is not None:
            visible = jax.lax.dynamic_update_slice(cache.visible, visible, (0, start))
        masks = {w: _mask(visible, slots, w) for w in set(config.windows)}
        x = self.embed_tokens(tokens)
        turn = config.rope(positions, x.dtype)
        stored: list[tuple[Array, Array]] = []
        for i, (layer, window) in enumerate(zip(self.layers, config.windows, strict=True)):

            def store(k: Array, v: Array, i: int = i) -> tuple[Array, Array]:
                if cache is not None:
                    at = (0, 0, start, 0)
                    k = jax.lax.dynamic_update_slice(cache.keys[i], k, at)
                    v = jax.lax.dynamic_update_slice(cache.values[i], v, at)
                stored.append((k, v))
                return k, v

            x = layer(x, turn, masks[window], store)
        if cache is not None:
            keys, values = zip(*stored, strict=True)
            cache = Cache(keys, values, visible, cache.length + count)
        return self.norm(x), cache


class Decoder(nnx.Module):
    """A causal language model: tokens to logits.

    Its leaves have Hugging Face's names in Flax's orientation: ``model.embed_tokens.embedding`` (V,
    D), ``model.layers.0.self_attn.q_proj.kernel`` (in, out) and ``.bias`` (out),
    ``model.norm.scale`` (D), and ``lm_head.kernel`` (D, V) unless the config ties it.

    Args:
        config: what it computes.
        dtype: of the leaves, and so of the activations.
        rngs: ``nnx.Rngs``, for random weights; `load` and `from_torch` give real ones.

    Raises:
        ShapeError: on a call, by tokens that are not (b, t), positions unlike them, or a cache of
            other rows or with too few slots left.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> config = DecoderConfig.from_dict(
        ...     dict(
        ...         model_type="llama",
        ...         vocab_size=11,
        ...         hidden_size=8,
        ...         intermediate_size=12,
        ...         num_hidden_layers=2,
        ...         num_attention_heads=4,
        ...     )
        ... )
        >>> model = Decoder(config, dtype=jnp.float32, rngs=nnx.Rngs(0))
        >>> model(jnp.array([[1, 2, 3]])).shape
        (1, 3, 11)
        >>> model.model.layers[0].self_attn.q_proj.kernel.shape
        (8, 8)

    Source: ``transformers/models/{llama,mistral,qwen2,qwen3,gemma}/modeling_*.py``.
    """

    def __init__(self, config: DecoderConfig, *, dtype: Any, rngs: nnx.Rngs):
        self.model = Stack(config, dtype, rngs)
        if not config.tie_word_embeddings:
            self.lm_head = Linear(config.hidden_size, config.vocab_size, False, dtype, rngs)
        self.config = config

    @property
    def dtype(self) -> Any:
        """The dtype of the activations: the embedding's."""
        return self.model.embed_tokens.embedding[...].dtype

    @overload
    def __call__(
        self,
        tokens: Int[Array, "b t"],
        *,
        positions: Int[Array, "b t"] | None = None,
        cache: None = None,
    ) -> Float[Array, "b t V"]: ...

    @overload
    def __call__(
        self, tokens: Int[Array, "b t"], *, positions: Int[Array, "b t"] | None = None, cache: Cache
    ) -> tuple[Float[Array, "b t V"], Cache]: ...

    def __call__(
        self,
        tokens: Int[Array, "b t"],
        *,
        positions: Int[Array, "b t"] | None = None,
        cache: Cache | None = None,
    ) -> Float[Array, "b t V"] | tuple[Float[Array, "b t V"], Cache]:
        """The logits of each next token, and the new cache where one is given.

        Args:
            tokens: the tokens; one outside of the vocabulary gives NaN.
            positions: where each token stands, for its angle; from 0, or from the cache's length,
                by default. A negative one marks padding, which nobody sees. What a token sees goes
                by the order of the tokens, so rows are one text each, not several.
            cache: what came before. Its slots must suffice; inside ``jit`` that can't be checked.

        Returns:
            The logits, or ``(logits, cache)``; the given cache is not changed.

        Raises:
            ShapeError: if shapes do not fit together.
        """
        hidden, after = self.model(tokens, positions, cache)
        logits = self.logits(hidden)
        return logits if after is None else (logits, after)

    def logits(self, hidden: Float[Array, "b t D"]) -> Float[Array, "b t V"]:
        """``h K``, or ``h Eᵀ`` if tied."""
        if self.config.tie_word_embeddings:
            return self.model.embed_tokens.attend(hidden)
        return self.lm_head(hidden)

    def untied(self) -> "Decoder":
        """The same function with a head of its own, ``lm_head.kernel = Eᵀ``.

        Returns:
            A new module that shares all other leaves; this one if it is not tied.
        """
        if not self.config.tie_word_embeddings:
            return self
        leaves = {path: leaf[...] for path, leaf in nnx.to_flat_state(nnx.state(self))}
        head = leaves["model", "embed_tokens", "embedding"].T
        config = replace(self.config, tie_word_embeddings=False)
        return assemble(config, {**leaves, ("lm_head", "kernel"): head})


def leaf_paths(config: DecoderConfig) -> dict[tuple[Any, ...], tuple[int, ...]]:
    """The leaves of a decoder: ``{path: shape}``."""
    state = nnx.state(_abstract(config))
    return {path: leaf.shape for path, leaf in nnx.to_flat_state(state)}


def assemble(config: DecoderConfig, leaves: Mapping[tuple[Any, ...], Array]) -> Decoder:
    """The decoder with these leaves, all that `leaf_paths` names."""
    graph, state = nnx.split(_abstract(config))
    filled = [(path, leaf.replace(leaves[path])) for path, leaf in nnx.to_flat_state(state)]
    return nnx.merge(graph, nnx.from_flat_state(filled))


def _abstract(config: DecoderConfig) -> Decoder:
    """A decoder without arrays."""
    return nnx.eval_shape(lambda: Decoder(config, dtype=jnp.float32, rngs=nnx.Rngs(0)))


def _normal(key: Key[Array, ""], shape: tuple[int, int], dtype: Any) -> Array:
    """Normal numbers of transformers' stddev."""
    return 0.02 * jax.random.normal(key, shape, dtype)


def _mask(
    visible: Bool[Array, "b s"], slots: Int[Array, " t"], window: int | None
) -> Bool[Array, "b t s"]:
    """What each token sees: itself and what stands before it, at most ``window`` of these."""
    back = slots[:, None] - jnp.arange(visible.shape[1], dtype=jnp.int32)[None, :]
    seen = back >= 0 if window is None else (back >= 0) & (back < window)
    return seen[None, :, :] & visible[:, None, :]


def _attend(
    q: Float[Array, "b t h d"],
    keys: Float[Array, "b k s d"],
    values: Float[Array, "b k s d"],
    mask: Bool[Array, "b t s"],
) -> Float[Array, "b t hd"]:
    """``softmax(q kᵀ/√d) v``, each head of k and v for a group of the queries'."""
    rows, count, heads, size = q.shape
    grouped = q.reshape(rows, count, keys.shape[1], -1, size)
    scores = jnp.einsum("btkgd,bksd->bkgts", grouped, keys) * size**-0.5
    wide = widened(scores.dtype)
    lowest = jnp.finfo(wide).min
    scores = jnp.where(mask[:, None, None, :, :], scores.astype(wide), lowest)
    weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
    return jnp.einsum("bkgts,bksd->btkgd", weights, values).reshape(rows, count, heads * size)


def _check(tokens: Array, positions: Array | None, cache: Cache | None) -> None:
    """Whether the arguments of a call fit together."""
    if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ShapeError(
            f"tokens are {tokens.dtype} {tokens.shape}, expected whole numbers of shape (rows, "
            "tokens). One text is tokens[None]."
        )
    if positions is not None and positions.shape != tokens.shape:
        raise ShapeError(
            f"positions have shape {positions.shape}, expected the tokens' {tokens.shape}."
        )
    if cache is None:
        return
    rows, slots = cache.visible.shape
    taken = 0 if isinstance(cache.length, jax.core.Tracer) else int(cache.length)
    if rows != tokens.shape[0] or taken + tokens.shape[1] > slots:
        raise ShapeError(
            f"tokens have shape {tokens.shape}, but the cache has {rows} rows with {slots - taken} "
            f"of {slots} slots free. Make one with Cache.empty(config, rows, slots, dtype)."
        )
