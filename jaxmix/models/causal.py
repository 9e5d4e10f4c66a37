"""The base class of causal language models: causal masks, the cache and the head.

Activations have the embedding's dtype; every leaf is cast to it on use. Norms, softmax and angles
are computed in float32, or in float64 if that is the dtype.
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
from jaxmix.models.tree import LeafPath, assemble, skeleton

__all__ = ["CausalLM", "Context", "check_tokens"]

# (x, past) to (x, (keys, values)).
Step = Callable[[Array, Past | None], tuple[Array, tuple[Array, Array]]]


class CausalLM(nnx.Module):
    """A causal language model, which maps tokens to logits. `Decoder` and `GPT2` derive from it."""

    # The path of the embedding in the tree.
    EMBEDDING: ClassVar[LeafPath]
    config: DecoderConfig | GPT2Config
    lm_head: Linear

    @property
    @abstractmethod
    def embed(self) -> Embed:
        """The embedding of the tokens."""

    @property
    def longest(self) -> int | None:
        """The number of learned positions; None if there is no limit."""
        return None

    @abstractmethod
    def hidden(
        self,
        tokens: Integer[Array, "b t"],
        *,
        positions: Integer[Array, "b t"] | None = None,
        cache: Cache | None = None,
    ) -> tuple[Float[Array, "b t D"], Cache | None]:
        """Returns the hidden states after the last norm, and the cache including these tokens."""

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
        """Returns the logits of each next token, and the new cache if one is given.

        Args:
            tokens: The tokens. Tokens outside the vocabulary give NaN.
            positions: The position of each token; by default counted from 0 or from the cache's
                length. Negative positions mark padding, which no token attends to. The causal mask
                follows the order of tokens, so each row must contain a single text.
            cache: The cache of previous tokens. It must have enough free slots, which can't be
                checked inside ``jit``.

        Returns:
            The logits, or ``(logits, cache)``. The given cache is not changed.

        Raises:
            ShapeError: If the shapes do not match.
        """
        hidden, after = self.hidden(tokens, positions=positions, cache=cache)
        logits = self.logits(hidden)
        return logits if after is None else (logits, after)

    def logits(self, hidden: Float[Array, "b t D"]) -> Float[Array, "b t V"]:
        """Returns ``h K``, or ``h Eᵀ`` if the head is tied to the embedding."""
        if self.config.tie_word_embeddings:
            return self.embed.attend(hidden)
        return self.lm_head(hidden)

    def untied(self) -> Self:
        """Returns an equal model with a separate head, ``lm_head.kernel = Eᵀ``.

        Returns:
            A new module that shares all other leaves, or this module if it is not tied.
        """
        if not self.config.tie_word_embeddings:
            return self
        leaves = {path: leaf[...] for path, leaf in nnx.to_flat_state(nnx.state(self))}
        graph, empty = skeleton(type(self), replace(self.config, tie_word_embeddings=False))
        head = leaves[self.EMBEDDING].T
        return assemble(graph, empty, {**leaves, ("lm_head", "kernel"): head})


@dataclass(frozen=True)
class Context:
    """The positions of the tokens of one call, and the cache of previous tokens.

    Args:
        positions: The positions of the tokens (b, t), negative for padding.
        slots: The slots of the tokens (t).
        visible: Which slots may be attended to (b, s).
        cache: The cache of previous tokens, if there is one.
    """

    positions: Integer[Array, "b t"]
    slots: Int[Array, " t"]
    visible: Bool[Array, "b s"]
    cache: Cache | None

    @classmethod
    def of(cls, tokens: Array, positions: Array | None, cache: Cache | None) -> "Context":
        """Checks the arguments of a call and returns its context."""
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
        """Returns the causal mask, limited to the last ``window`` tokens if it is given."""
        back = self.slots[:, None] - jnp.arange(self.visible.shape[1], dtype=jnp.int32)[None, :]
        seen = back >= 0 if window is None else (back >= 0) & (back < window)
        return seen[None, :, :] & self.visible[:, None, :]

    def through(self, x: Array, layers: Sequence[Step]) -> tuple[Array, Cache | None]:
        """Runs the layers on ``x``; returns the result and the cache with new keys and values."""
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
    """Checks that tokens are integers (b, t) and that other arguments have their shape.

    Args:
        tokens: The tokens.
        others: Other arrays by the names of their arguments.

    Raises:
        ShapeError: If they do not.
    """
    if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ShapeError(
            f"tokens are {tokens.dtype} with shape {tokens.shape}, expected integers with shape "
            "(rows, tokens). For a single text use tokens[None]."
        )
    for name, array in others.items():
        if array is not None and array.shape != tokens.shape:
            raise ShapeError(
                f"{name}: the shape is {array.shape}, expected that of the tokens {tokens.shape}."
            )


def _check_cache(tokens: Array, cache: Cache | None) -> None:
    """Checks that the tokens fit into the cache."""
    if cache is None:
        return
    rows, slots = cache.visible.shape
    used = 0 if isinstance(cache.length, Tracer) else int(cache.length)
    if rows != tokens.shape[0] or used + tokens.shape[1] > slots:
        raise ShapeError(
            f"tokens have shape {tokens.shape}, but the cache has {rows} rows with {slots - used} "
            f"of {slots} slots free. Make one with Cache.empty(config, rows, slots, dtype)."
        )
