"""Sparse matrices in coordinate format, and the selection of rows that slices use."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxmix.operators.base import Operator, slice_indices, static
from jaxmix.pytrees import register_dataclass

__all__ = ["Sparse", "selection"]


@register_dataclass
@dataclass(frozen=True, eq=False)
class Sparse(Operator):
    """A sparse matrix in coordinate format; values at repeated positions are summed.

    Args:
        values: The values v (n,).
        indices: Rows i and columns j of the values (2, n), which must be inside the matrix: JAX
            drops values outside.
        n_rows: The number of rows.
        n_cols: The number of columns.

    Example:
        >>> Sparse(jnp.array([2.0, 3.0]), jnp.array([[0, 0], [1, 1]]), 1, 2).dense().tolist()
        [[0.0, 5.0]]
    """

    values: Float[Array, " n"]
    indices: Int[Array, "2 n"]
    n_rows: int = static()
    n_cols: int = static()

    @property
    def shape(self) -> tuple[int, int]:
        return self.n_rows, self.n_cols

    @property
    def T(self) -> "Sparse":
        return Sparse(self.values, self.indices[::-1], self.n_cols, self.n_rows)

    def dense(self) -> Array:
        # zeros_like keeps the weak type of the values, which `selection` has.
        return self.added_to(jnp.zeros_like(self.values, shape=self.shape))

    def scaled(self, factor: Array | float) -> "Sparse":
        return Sparse(factor * self.values, self.indices, self.n_rows, self.n_cols)

    def __matmul__(self, x: Array) -> Array:
        i, j = self.indices
        out = jnp.zeros((self.n_rows, x.shape[1]), x.dtype)
        return out.at[i].add(self.values[:, None] * jnp.asarray(x)[j])

    def __rmatmul__(self, x: Array) -> Array:
        i, j = self.indices
        out = jnp.zeros((x.shape[0], self.n_cols), x.dtype)
        return out.at[:, j].add(jnp.asarray(x)[:, i] * self.values[None, :])

    def rows(self, part: slice) -> "Sparse":
        kept = slice_indices(part, self.n_rows)
        if len(kept) == 0:
            return Sparse(self.values[:0], self.indices[:, :0], 0, self.n_cols)
        ahead = self.indices[0] - kept.start
        i, off = ahead // kept.step, ahead % kept.step
        # Entries outside stay in the list with value 0: the number of entries inside is not static.
        inside = (off == 0) & (i >= 0) & (i < len(kept))
        indices = jnp.stack([jnp.where(inside, i, 0), self.indices[1]])
        return Sparse(jnp.where(inside, self.values, 0), indices, len(kept), self.n_cols)

    def flops(self) -> int:
        return self.values.shape[0]

    def matmul_flops(self, n: int) -> int:
        return 2 * self.values.shape[0] * n

    def added_to(self, x: Array) -> Array:
        return jnp.asarray(x).at[self.indices[0], self.indices[1]].add(self.values)

    def added_flops(self) -> int:
        return self.values.shape[0]


def selection(kept: range, size: int) -> Sparse:
    """Returns rows of the identity matrix: ``selection(kept, size) @ x`` is ``x[kept]``.

    Args:
        kept: The rows to select, in order.
        size: The size of the identity.

    Returns:
        A matrix (len(kept), size) of zeros and ones, which has no dtype of its own.
    """
    positions = np.stack([np.arange(len(kept)), np.asarray(kept, int)]).astype(np.int32)
    ones = jnp.broadcast_to(jnp.asarray(1.0), (len(kept),))
    return Sparse(ones, jnp.asarray(positions), len(kept), size)
