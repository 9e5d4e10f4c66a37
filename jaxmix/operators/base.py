"""The interface of all operators."""

import math
from abc import ABC, abstractmethod
from dataclasses import MISSING, field
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

__all__ = ["Operator", "slice_indices", "static"]


class Operator(ABC):
    """A structured matrix ``M (rows, cols)``.

    A new structure implements the abstract members below. `add` and `multiply` then accept it:
    pairs of structures that they cannot merge are kept as a `Sum` or a `Product`.
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
        """Returns the matrix as an array."""

    @abstractmethod
    def scaled(self, factor: Float[Array, ""] | float) -> "Operator":
        """Returns ``factor · M``, with the factor multiplied into the smallest array."""

    @abstractmethod
    def __matmul__(self, x: Float[Array, "cols n"]) -> Float[Array, "rows n"]:
        """Returns ``M x`` for a dense matrix ``x``, using the structure."""

    @abstractmethod
    def rows(self, part: slice) -> "Operator":
        """Returns ``M[part, :]`` as an operator, for any slice that NumPy accepts."""

    @abstractmethod
    def flops(self) -> int:
        """Returns how many multiplications and additions `dense` needs."""

    @abstractmethod
    def matmul_flops(self, n: int) -> int:
        """Returns how many multiplications and additions ``M x`` needs if x has n columns."""

    def cols(self, part: slice) -> "Operator":
        """Returns ``M[:, part]`` as an operator."""
        return self.T.rows(part).T

    def __rmatmul__(self, x: Float[Array, "n rows"]) -> Float[Array, "n cols"]:
        """Returns ``x M`` for a dense matrix ``x`` (one token per row), using the structure."""
        return (self.T @ x.T).T

    def take_rows(self, at: Int[Array, " n"]) -> Float[Array, "n cols"]:
        """Returns the rows ``M[at]`` as an array, as an embedding lookup does.

        Args:
            at: Row indices; all of them must be inside the matrix.
        """
        ones = at[None, :] == jnp.arange(self.shape[0], dtype=at.dtype)[:, None]
        return (self.T @ ones.astype(self._dtype())).T

    def _dtype(self) -> Any:
        """The dtype of the operator's floats, or JAX's default float if it holds none."""
        floats = [x.dtype for x in jax.tree.leaves(self) if jnp.issubdtype(x.dtype, jnp.floating)]
        return jnp.result_type(*floats) if floats else jnp.zeros(()).dtype

    def added_to(self, x: Float[Array, "rows cols"]) -> Float[Array, "rows cols"]:
        """Returns ``x + M``."""
        return x + self.dense()

    def product_added_to(
        self, y: Float[Array, "n cols"], x: Float[Array, "n rows"]
    ) -> Float[Array, "n cols"]:
        """Returns ``y + x M`` for tokens x; an operator may have a way to add to y in place."""
        return y + x @ self

    def added_flops(self) -> int:
        """Returns how many multiplications and additions `added_to` needs."""
        return self.flops() + math.prod(self.shape)


def static(default: Any = MISSING) -> Any:
    """Declares a dataclass field that is static: part of the pytree's structure, not a child."""
    return field(default=default, metadata={"static": True})


def slice_indices(part: slice, size: int) -> range:
    """Returns the indices that a slice selects from an axis of this size."""
    return range(*part.indices(size))
