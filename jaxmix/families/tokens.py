"""Trained tokens: replaces some rows of an embedding."""

from dataclasses import dataclass, field
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from jaxmix.affine import AffineMap, Base
from jaxmix.families.base import Update, mismatch
from jaxmix.families.positions import as_int32
from jaxmix.operators import Diagonal, Identity, Sparse
from jaxmix.pytrees import register_dataclass

__all__ = ["Tokens"]


@register_dataclass
@dataclass(frozen=True, eq=False)
class Tokens(Update):
    """Replaced rows: ``W'[i] = v`` for the listed rows; the other rows are unchanged.

    These are PEFT's trainable tokens, where W is an embedding (V, D). If the head is tied to the
    embedding, PEFT changes both, and so does `compose` with their shared leaf.

    Strength s interpolates linearly: ``W'[i] = (1 − s)·W[i] + s·v``.

    Args:
        values: v (n, D), PEFT's ``trainable_tokens_delta``; despite the name, these are the new
            rows and not differences.
        rows: i (n,) int32, PEFT's ``token_indices``, without repetition.
        is_copy: Whether the site is a head that PEFT tied to an embedding with the same tokens.

    Raises:
        ShapeError: Raised by `compose` if rows are outside W, are repeated, or do not have its
            length.

    Example:
        >>> last = Tokens(jnp.array([[7.0, 8.0]]), jnp.array([1]))
        >>> half = last.weight_map(Base(None, (2, 2)), jnp.asarray(0.5))
        >>> half(jnp.ones((2, 2))).tolist()
        [[1.0, 1.0], [4.0, 4.5]]

    Source: ``peft/tuners/trainable_tokens/layer.py``.
    """

    values: Float[Array, "n d"]
    rows: Int[Array, " n"]
    is_copy: bool = field(default=False, metadata={"static": True})

    family: ClassVar[str] = "Tokens"
    trained: ClassVar[tuple[str, ...]] = ("values",)

    @property
    def keeps_tie(self) -> bool:
        """Always: the rows are those of the embedding and of its tied head."""
        return True

    def weight_map(self, base: Base, strength: Float[Array, ""]) -> AffineMap:
        """``(1 − s on the rows, I, s·v on the rows)``."""
        (count, length), rows = self.values.shape, as_int32(self.rows)
        values = strength * jnp.asarray(self.values)
        kept = jnp.ones(base.shape[0], values.dtype)
        kept = kept.at[rows].set(jnp.broadcast_to(1 - strength, (count,)).astype(values.dtype))
        columns = jnp.broadcast_to(jnp.arange(length, dtype=rows.dtype)[None], (count, length))
        indices = jnp.stack([jnp.repeat(rows, length), columns.reshape(-1)])
        new = Sparse(values.reshape(-1), indices, *base.shape)
        return AffineMap(Diagonal(kept, gates=True), Identity(base.shape[1]), new)

    def misfit(self, shape: tuple[int, int]) -> str | None:
        """Checks that the rows are inside W, are not repeated and have the length of its rows.

        Traced row indices cannot be checked.
        """
        factors = {
            "trainable_tokens_delta": (self.values, ("n", shape[1])),
            "token_indices": (self.rows, ("n",)),
        }
        if problem := mismatch(factors, shape):
            return problem
        if isinstance(self.rows, Tracer) or self.values.size == 0:
            return None
        rows = np.asarray(self.rows)
        if rows.min() < 0 or rows.max() >= shape[0]:
            found = f"token_indices go from {rows.min()} to {rows.max()}"
            return f"{found}, expected rows below {shape[0]} from weight {shape}"
        if len(set(rows.tolist())) < len(rows):
            return "token_indices repeats a row, expected each row once"
        return None

    def size(self) -> str:
        """The number of rows."""
        return f"{self.values.shape[0]} rows"
