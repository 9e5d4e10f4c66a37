"""Permutations of rows."""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxmix.operators.base import Operator
from jaxmix.operators.sparse import Sparse
from jaxmix.pytrees import register_dataclass

__all__ = ["Permutation"]


@register_dataclass
@dataclass(frozen=True, eq=False)
class Permutation(Operator):
    """The permutation matrix P with ``(P x)[i] = x[order[i]]``, without a dtype of its own.

    Args:
        order: The source index of each row (n,), a permutation of 0 … n − 1.

    Example:
        >>> Permutation(jnp.array([1, 0])).dense().tolist()
        [[0.0, 1.0], [1.0, 0.0]]
    """

    order: Int[Array, " n"]

    @property
    def shape(self) -> tuple[int, int]:
        return self.order.shape[0], self.order.shape[0]

    @property
    def T(self) -> "Permutation":
        inverse = jnp.zeros_like(self.order).at[self.order].set(self._row_indices())
        return Permutation(inverse)

    def dense(self) -> Array:
        return jnp.where(self.order[:, None] == self._row_indices()[None], 1.0, 0.0)

    def scaled(self, factor: Array | float) -> Sparse:
        return self._scaled_rows(slice(None), jnp.asarray(factor))

    def __matmul__(self, x: Float[Array, "n k"]) -> Float[Array, "n k"]:
        return jnp.asarray(x)[self.order]

    def __rmatmul__(self, x: Float[Array, "k n"]) -> Float[Array, "k n"]:
        return jnp.asarray(x)[:, self.T.order]

    def rows(self, part: slice) -> Sparse:
        return self._scaled_rows(part, jnp.asarray(1.0))

    def flops(self) -> int:
        return 0

    def matmul_flops(self, n: int) -> int:
        return 0

    def _row_indices(self) -> Int[Array, " n"]:
        """Returns the indices of all rows."""
        return jnp.arange(self.order.shape[0], dtype=self.order.dtype)

    def _scaled_rows(self, part: slice, factor: Float[Array, ""]) -> Sparse:
        """Returns the factor times the selected rows."""
        cols = self.order[part]
        rows = self._row_indices()[: cols.shape[0]]
        values = jnp.broadcast_to(factor, cols.shape)
        return Sparse(values, jnp.stack([rows, cols]), cols.shape[0], self.order.shape[0])
