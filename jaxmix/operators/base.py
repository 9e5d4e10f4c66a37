"""What every operator can do."""

import math
from abc import ABC, abstractmethod
from dataclasses import MISSING, field
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

__all__ = ["Operator", "picked", "static"]


class Operator(ABC):
    """A structured matrix ``M (rows, cols)``; the subclasses say of which structure.

    A new structure says the seven abstract things below and is then foldable: what `add` and
    `multiply` do not know they keep as a `Sum` or a `Product`.
    """

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """``(rows, cols)``."""

    @property
    @abstractmethod
    def T(self) -> "Operator":
        """The transpose ``Mᵀ``, of the same structure."""

    @abstractmethod
    def dense(self) -> Float[Array, "rows cols"]:
        """The matrix itself."""

    @abstractmethod
    def scaled(self, factor: Float[Array, ""] | float) -> "Operator":
        """``factor · M``; the factor goes where the fewest numbers are."""

    @abstractmethod
    def __matmul__(self, x: Float[Array, "cols n"]) -> Float[Array, "rows n"]:
        """``M x`` for a dense matrix ``x``, by the structure."""

    @abstractmethod
    def rows(self, part: slice) -> "Operator":
        """``M[part, :]``, structured too; any slice that a NumPy array takes."""

    @abstractmethod
    def flops(self) -> int:
        """Multiplications and additions that `dense` takes."""

    @abstractmethod
    def matmul_flops(self, n: int) -> int:
        """Multiplications and additions that ``M x`` takes, for an x with n columns."""

    def cols(self, part: slice) -> "Operator":
        """``M[:, part]``, structured too."""
        return self.T.rows(part).T

    def __rmatmul__(self, x: Float[Array, "n rows"]) -> Float[Array, "n cols"]:
        """``x M`` for a dense matrix ``x``, by the structure: tokens are rows."""
        return (self.T @ x.T).T

    def picked_rows(self, at: Int[Array, " n"]) -> Float[Array, "n cols"]:
        """``M[at]``, dense: the rows of an embedding that tokens look up.

        Args:
            at: The rows' numbers, inside the matrix.
        """
        ones = at[None, :] == jnp.arange(self.shape[0], dtype=at.dtype)[:, None]
        return (self.T @ ones.astype(self._dtype())).T

    def _dtype(self) -> Any:
        """The dtype of its numbers; of the arithmetic, where it has none of its own."""
        floats = [x.dtype for x in jax.tree.leaves(self) if jnp.issubdtype(x.dtype, jnp.floating)]
        return jnp.result_type(*floats) if floats else jnp.zeros(()).dtype

    def added_to(self, x: Float[Array, "rows cols"]) -> Float[Array, "rows cols"]:
        """``x + M``."""
        return x + self.dense()

    def added_flops(self) -> int:
        """Multiplications and additions that `added_to` takes."""
        return self.flops() + math.prod(self.shape)


def static(default: Any = MISSING) -> Any:
    """A dataclass field that is no child of the pytree but part of its structure."""
    return field(default=default, metadata={"static": True})


def picked(part: slice, size: int) -> range:
    """The indices that a slice of an axis of this size picks."""
    return range(*part.indices(size))
