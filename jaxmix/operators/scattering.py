"""The sum of a matrix and many single numbers, which a TPU's compiler compiles in seconds."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxmix.operators.backends import Backend, by_platform
from jaxmix.operators.loops import carry
from jaxmix.operators.sparse import Sparse

__all__ = ["dense", "is_in_runs", "scattered"]

# XLA sorts the numbers by position; it takes 9 s to compile a sort of 160,000 numbers. Runs of
# 16384 take 3 s and as many estimated cycles as one sort; shorter ones take less of the first and
# more of the second.
_RUN = 2**14
_SHORT_RUN = 2**12
# The dense matrix of the numbers is one part on every device if the weight's columns are on
# several, so it is made for weights up to this size, for which it takes 256 MB.
_MOST = 2**26


def scattered(x: Float[Array, "rows cols"], sparse: Sparse) -> Float[Array, "rows cols"]:
    """Returns ``x + M`` for a matrix on one device; it compiles fast rather than runs fast.

    Args:
        x: The matrix.
        sparse: M, of the same shape.

    Example:
        >>> scattered(jnp.ones((1, 2)), Sparse(jnp.ones(1), jnp.array([[0], [1]]), 1, 2)).tolist()
        [[1.0, 2.0]]
    """

    def on_accelerator(backend: Backend, x: Array, sparse: Sparse) -> Array:
        if not is_in_runs(backend, sparse):
            return sparse.added_to(x)
        return _added_in_runs(x, sparse, _SHORT_RUN)

    return by_platform(lambda x, sparse: sparse.added_to(x), on_accelerator, x, sparse)


def dense(sparse: Sparse, dtype: Any) -> Float[Array, "rows cols"]:
    """Returns M as a dense matrix, by a loop over runs of its numbers.

    Unlike in `scattered`, no weight is in the loop, which would gather one from several devices.

    Args:
        sparse: M.
        dtype: The dtype of the sums.
    """
    return _added_in_runs(jnp.zeros(sparse.shape, dtype), sparse, _RUN)


def _added_in_runs(x: Array, sparse: Sparse, run: int) -> Array:
    """``x + M`` by a loop over runs of this length."""
    (rows, cols), size = sparse.shape, sparse.n_rows * sparse.n_cols
    i, j = (at.astype(np.int32) for at in sparse.indices)
    i, j = jnp.where(i < 0, i + rows, i), jnp.where(j < 0, j + cols, j)
    is_inside = (i >= 0) & (i < rows) & (j >= 0) & (j < cols)
    # In one axis XLA adds them in place; in two it would copy the matrix for each run.
    flat = jnp.where(is_inside, i * cols + j, size)
    more = -sparse.values.shape[0] % run
    values = jnp.pad(sparse.values.astype(x.dtype), (0, more)).reshape(-1, run)
    at = jnp.pad(flat, (0, more), constant_values=size).reshape(-1, run)

    def add_run(total: Array, part: tuple[Array, Array]) -> tuple[Array, None]:
        return total.at[part[0]].add(part[1]), None

    start = carry(x.reshape(-1), sparse)
    return jax.lax.scan(add_run, start, (at, values))[0].reshape(rows, cols)


def is_in_runs(backend: Backend, sparse: Sparse) -> bool:
    """Whether to add a sparse matrix as `dense` makes it, since one sort compiles slowly."""
    is_large = sparse.n_rows * sparse.n_cols > _MOST
    return backend.has_loops and sparse.values.shape[0] > _SHORT_RUN and not is_large
