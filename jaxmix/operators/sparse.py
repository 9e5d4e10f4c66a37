"""Sparse matrices by coordinates, and the selections that slices are made of."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxmix.operators.base import Operator, picked, static

__all__ = ["Sparse", "selection"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Sparse(Operator):
    """``M[i, j] = Σ v`` over the entries listed; an entry listed twice counts twice.

    Args:
        values: v (n,).
        indices: i and j (2, n), from 0 on and inside the matrix: JAX drops what lies beyond.
        n_rows: How many rows.
        n_cols: How many columns.

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
        # zeros_like keeps a weak type where the values have one, as a selection's do.
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
        kept = picked(part, self.n_rows)
        if len(kept) == 0:
            return Sparse(self.values[:0], self.indices[:, :0], 0, self.n_cols)
        ahead = self.indices[0] - kept.start
        i, off = ahead // kept.step, ahead % kept.step
        # Entries outside stay listed, with the value 0: how many fall inside is not static.
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
    """Rows of the identity: ``selection(kept, size) @ x`` is ``x[kept]``.

    Args:
        kept: The rows, in order.
        size: The size of the identity.

    Returns:
        A matrix (len(kept), size) of ones and zeros, of no dtype of its own, as `Identity`.
    """
    places = np.stack([np.arange(len(kept)), np.asarray(kept, int)]).astype(np.int32)
    ones = jnp.broadcast_to(jnp.asarray(1.0), (len(kept),))
    return Sparse(ones, jnp.asarray(places), len(kept), size)
