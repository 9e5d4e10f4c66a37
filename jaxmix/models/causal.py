"""What causal language models have in common: what each token sees, the cache, the head.

Activations are in the embedding's dtype; every leaf is cast to it on use. Norms, softmax and angles
are computed in float32, or in float64 where that is the dtype.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self, overload

import jax
import jax.numpy as jnp
from flax import nnx
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, Integer

from jaxmix.errors import ShapeError
from jaxmix.models.cache import Cache
from jaxmix.models.config import DecoderConfig, GPT2Config
from jaxmix.models.layers import Embed, Linear, Past
from jaxmix.models.tree import Path, assemble, skeleton

__all__ = ["CausalLM", "Context", "check_tokens"]

# (x, past) to (x, (keys, values)).
Step = Callable[[Array, Past | None], tuple[Array, tuple[Array, Array]]]


class CausalLM(nnx.Module):
    """A causal language model: tokens to logits; what `Decoder` and `GPT2` are."""

    # Where the embedding lies in the tree.
    EMBEDDING: ClassVar[Path]
    config: DecoderConfig | GPT2Config
    lm_head: Linear

    @property
    @abstractmethod
    def embed(self) -> Embed:
        """The embedding of the tokens."""

    @property
    def longest(self) -> int | None:
        """The number of positions that the model knows; None if it knows all."""
        return None

    @abstractmethod
    def hidden(
        self,
        tokens: Integer[Array, "b t"],
        *,
        positions: Integer[Array, "b t"] | None = None,
        cache: Cache | None = None,
    ) -> tuple[Float[Array, "b t D"], Cache | None]:
        """The hidden states after the last norm, and the cache with these tokens in it."""

    @property
    def dtype(self) -> Any:
        """The dtype of the activations: the embedding's."""
        return self.embed.embedding[...].dtype

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
            tokens: The tokens; one beyond the vocabulary gives NaN.
            positions: Where each token stands; from 0, or from the cache's length, by default. A
                negative one marks padding, which nobody sees. What a token sees goes by the order
                of the tokens, so rows are one text each, not several.
            cache: What came before. Its slots must suffice; inside ``jit`` that can't be checked.

        Returns:
            The logits, or ``(logits, cache)``; the given cache is not changed.

        Raises:
            ShapeError: If shapes do not fit together.
        """
        hidden, after = self.hidden(tokens, positions=positions, cache=cache)
        logits = self.logits(hidden)
        return logits if after is None else (logits, after)

    def logits(self, hidden: Float[Array, "b t D"]) -> Float[Array, "b t V"]:
        """``h K``, or ``h Eᵀ`` if tied."""
        if self.config.tie_word_embeddings:
            return self.embed.attend(hidden)
        return self.lm_head(hidden)

    def untied(self) -> Self:
        """The same function with a head of its own, ``lm_head.kernel = Eᵀ``.

        Returns:
            A new module that shares all other leaves; this one if it is not tied.
        """
        if not self.config.tie_word_embeddings:
            return self
        leaves = {path: leaf[...] for path, leaf in nnx.to_flat_state(nnx.state(self))}
        graph, empty = skeleton(type(self), replace(self.config, tie_word_embeddings=False))
        head = leaves[self.EMBEDDING].T
        return assemble(graph, empty, {**leaves, ("lm_head", "kernel"): head})


@dataclass(frozen=True)
class Context:
    """Where the tokens of one call stand, and what has come before them.

    Args:
        positions: Of the tokens (b, t), negative for padding.
        slots: Which slots of the text so far they take (t).
        visible: Which slots may be seen (b, s).
        cache: What came before, if a cache is kept.
    """

    positions: Integer[Array, "b t"]
    slots: Int[Array, " t"]
    visible: Bool[Array, "b s"]
    cache: Cache | None

    @classmethod
    def of(cls, tokens: Array, positions: Array | None, cache: Cache | None) -> "Context":
        """The context of a call, once its arguments are seen to fit together."""
        check_tokens(tokens, {"positions": positions})
        _check_cache(tokens, cache)
        rows, count = tokens.shape
        start = 0 if cache is None else cache.length
        slots = start + jnp.arange(count, dtype=jnp.int32)
        if positions is None:
            positions = jnp.broadcast_to(slots[None, :], (rows, count))
        visible = positions >= 0
        if cache is not None:
            zero = jnp.zeros_like(cache.length)
            visible = jax.lax.dynamic_update_slice(cache.visible, visible, (zero, start))
        return cls(positions, slots, visible, cache)

    def mask(self, window: int | None = None) -> Bool[Array, "b t s"]:
        """What each token sees: itself and what stands before it, at most ``window`` of these."""
        back = self.slots[:, None] - jnp.arange(self.visible.shape[1], dtype=jnp.int32)[None, :]
        seen = back >= 0 if window is None else (back >= 0) & (back < window)
        return seen[None, :, :] & self.visible[:, None, :]

    def through(self, x: Array, layers: Sequence[Step]) -> tuple[Array, Cache | None]:
        """``x`` through the layers, and the cache with the keys and values that they made."""
        cache = self.cache
        keys, values = [], []
        for i, layer in enumerate(layers):
            past = None if cache is None else (cache.keys[i], cache.values[i], cache.length)
            x, (k, v) = layer(x, past)
            keys.append(k)
            values.append(v)
        if cache is not None:
            length = cache.length + x.shape[1]
            cache = Cache(tuple(keys), tuple(values), self.visible, length)
        return x, cache


def check_tokens(tokens: Array, others: dict[str, Array | None]) -> None:
    """Whether tokens are (b, t) whole numbers, and what comes with them has their shape.

    Args:
        tokens: The tokens.
        others: Arrays by the names of their arguments.

    Raises:
        ShapeError: If not.
    """
    if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ShapeError(
            f"tokens are {tokens.dtype} {tokens.shape}, expected whole numbers of shape (rows, "
            "tokens). One text is tokens[None]."
        )
    for name, array in others.items():
        if array is not None and array.shape != tokens.shape:
            raise ShapeError(
                f"{name} have shape {array.shape}, expected the tokens' {tokens.shape}."
            )


def _check_cache(tokens: Array, cache: Cache | None) -> None:
    """Whether the tokens fit into the cache."""
    if cache is None:
        return
    rows, slots = cache.visible.shape
    taken = 0 if isinstance(cache.length, Tracer) else int(cache.length)
    if rows != tokens.shape[0] or taken + tokens.shape[1] > slots:
        raise ShapeError(
            f"tokens have shape {tokens.shape}, but the cache has {rows} rows with {slots - taken} "
            f"of {slots} slots free. Make one with Cache.empty(config, rows, slots, dtype)."
        )
