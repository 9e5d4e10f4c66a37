"""A decoder in NNX whose tree keeps Hugging Face's names: Llama, Mistral, Qwen2, Qwen3, Gemma.

Paths read ``model.layers.0.self_attn.q_proj.kernel``. Flax's orientation: a kernel is (in, out),
the transpose of PyTorch's weight. Activations are in the embedding's dtype; every leaf is cast to
it on use. Norms, softmax and angles are computed in float32, or in float64 where that is the dtype.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, overload

import jax
import jax.numpy as jnp
from flax import nnx
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, Integer

from jaxmix.errors import ShapeError
from jaxmix.models.cache import Cache
from jaxmix.models.config import DecoderConfig
from jaxmix.models.layers import Embed, Layer, Linear, RMSNorm

__all__ = ["Decoder", "assemble", "skeleton"]

# Of a leaf: ("model", "layers", 0, "self_attn", "q_proj", "kernel").
Path = tuple[Any, ...]


class Stack(nnx.Module):
    """The decoder without its head: tokens to hidden states."""

    def __init__(self, config: DecoderConfig, dtype: Any, rngs: nnx.Rngs):
        self.embed_tokens = Embed(config, dtype, rngs)
        self.layers = nnx.List(Layer(config, dtype, rngs) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config, dtype)
        self.config = config

    def __call__(
        self,
        tokens: Integer[Array, "b t"],
        positions: Integer[Array, "b t"] | None,
        cache: Cache | None,
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
            zero = jnp.zeros_like(cache.length)
            visible = jax.lax.dynamic_update_slice(cache.visible, visible, (zero, start))
        masks = {w: _mask(visible, slots, w) for w in set(config.windows)}
        x = self.embed_tokens(tokens)
        turn = config.rope(positions, x.dtype)
        keys, values = [], []
        for i, (layer, window) in enumerate(zip(self.layers, config.windows, strict=True)):
            past = None if cache is None else (cache.keys[i], cache.values[i], cache.length)
            x, (k, v) = layer(x, turn, masks[window], past)
            keys.append(k)
            values.append(v)
        if cache is not None:
            cache = Cache(tuple(keys), tuple(values), visible, cache.length + count)
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
        >>> from jaxmix.models import read_config
        >>> config = read_config(
        ...     dict(model_type="llama", vocab_size=11, hidden_size=8, intermediate_size=12)
        ...     | dict(num_hidden_layers=2, num_attention_heads=4)
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
        tokens: Integer[Array, "b t"],
        *,
        positions: Integer[Array, "b t"] | None = None,
        cache: None = None,
    ) -> Float[Array, "b t V"]: ...

    @overload
    def __call__(
        self,
        tokens: Integer[Array, "b t"],
        *,
        positions: Integer[Array, "b t"] | None = None,
        cache: Cache,
    ) -> tuple[Float[Array, "b t V"], Cache]: ...

    def __call__(
        self,
        tokens: Integer[Array, "b t"],
        *,
        positions: Integer[Array, "b t"] | None = None,
        cache: Cache | None = None,
    ) -> Float[Array, "b t V"] | tuple[Float[Array, "b t V"], Cache]:
        """The logits of each next token, and the new cache where one is given.

        Args:
            tokens: the tokens; one beyond the vocabulary gives NaN.
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
        graph, empty = skeleton(replace(self.config, tie_word_embeddings=False))
        return assemble(graph, empty, {**leaves, ("lm_head", "kernel"): head})


def skeleton(config: DecoderConfig) -> tuple[nnx.GraphDef[Decoder], dict[Path, Any]]:
    """A decoder without arrays: its graph, and at each path a variable that knows its shape."""
    empty = nnx.eval_shape(lambda: Decoder(config, dtype=jnp.float32, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(empty)
    return graph, {path: variable for path, variable in nnx.to_flat_state(state)}


def assemble(
    graph: nnx.GraphDef[Decoder], empty: Mapping[Path, Any], leaves: Mapping[Path, Array]
) -> Decoder:
    """The decoder of a `skeleton` with these leaves, one for each path."""
    filled = [(path, variable.replace(leaves[path])) for path, variable in empty.items()]
    return nnx.merge(graph, nnx.from_flat_state(filled))


def _mask(
    visible: Bool[Array, "b s"], slots: Int[Array, " t"], window: int | None
) -> Bool[Array, "b t s"]:
    """What each token sees: itself and what stands before it, at most ``window`` of these."""
    back = slots[:, None] - jnp.arange(visible.shape[1], dtype=jnp.int32)[None, :]
    seen = back >= 0 if window is None else (back >= 0) & (back < window)
    return seen[None, :, :] & visible[:, None, :]


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
    taken = 0 if isinstance(cache.length, Tracer) else int(cache.length)
    if rows != tokens.shape[0] or taken + tokens.shape[1] > slots:
        raise ShapeError(
            f"tokens have shape {tokens.shape}, but the cache has {rows} rows with {slots - taken} "
            f"of {slots} slots free. Make one with Cache.empty(config, rows, slots, dtype)."
        )
