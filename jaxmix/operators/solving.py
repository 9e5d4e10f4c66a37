"""Linear systems with a large dense matrix, in a form that a TPU compiler handles in seconds."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxmix.operators.backends import TPU, Backend, by_platform

__all__ = ["solve", "solve_by_blocks"]

# The width of the TPU's matrix unit.
_BLOCK = 128


def solve(a: Float[Array, "n n"], b: Float[Array, "n m"]) -> Float[Array, "n m"]:
    """Returns ``A⁻¹ B``.

    For a TPU, XLA unrolls the LU decomposition that `jax.numpy.linalg.solve` uses, and compiles a
    large one for minutes. There the system is solved by loops instead.

    Args:
        a: A, in float32 or wider.
        b: B.

    Example:
        >>> solve(jnp.array([[0.0, 2.0], [1.0, 0.0]]), jnp.array([[2.0], [3.0]])).tolist()
        [[3.0], [1.0]]
    """

    def on_accelerator(backend: Backend, a: Array, b: Array) -> Array:
        return _implicit(a, b) if backend is TPU else jnp.linalg.solve(a, b)

    return by_platform(jnp.linalg.solve, on_accelerator, a, b)


def _implicit(a: Array, b: Array) -> Array:
    """The solution by blocks. Gradients solve the transposed system."""

    def product(x: Any) -> Array:
        return jnp.matmul(a, x, precision="highest")

    return jax.lax.custom_linear_solve(
        product,
        b,
        lambda _, b: solve_by_blocks(a, b),
        lambda _, b: solve_by_blocks(a.T, b),
    )


def solve_by_blocks(a: Float[Array, "n n"], b: Float[Array, "n m"]) -> Float[Array, "n m"]:
    """Returns ``A⁻¹ B`` by Gauss-Jordan elimination with partial pivoting, in blocks of columns.

    The pivots are those of an LU decomposition, so it is about as accurate.

    Args:
        a: A, in float32 or wider.
        b: B.
    """
    n = a.shape[0]
    more = -n % _BLOCK
    rest = jnp.zeros((n, more), a.dtype)
    # Padded with an identity, whose rows are never pivots of other columns.
    above = jnp.concatenate([a, rest, b.astype(a.dtype)], 1)
    below = jnp.concatenate([rest.T, jnp.eye(more, more + b.shape[1], dtype=a.dtype)], 1)
    system = jnp.concatenate([above, below])
    system = jax.lax.fori_loop(0, (n + more) // _BLOCK, _eliminate_block, system)
    return system[:n, n + more :]


def _eliminate_block(block: Array, system: Array) -> Array:
    """Makes a block of columns those of the identity, by operations on rows."""
    size, start = system.shape[0], block * _BLOCK
    columns = jax.lax.dynamic_slice_in_dim(system, start, _BLOCK, 1)
    order = jnp.arange(size, dtype=np.int32)
    step = partial(_eliminate_column, start)
    columns, order = jax.lax.fori_loop(0, _BLOCK, step, (columns, order))
    system = system[order]
    pivots = jax.lax.dynamic_slice_in_dim(system, start, _BLOCK, 0)
    others = jax.lax.dynamic_update_slice_in_dim(system, jnp.zeros_like(pivots), start, 0)
    return others + jnp.matmul(columns, pivots, precision="highest")


def _eliminate_column(start: Array, k: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
    """One step of an elimination in place, which leaves the factors of all steps in the columns."""
    columns, order = state
    at = start + k
    rows = jnp.arange(columns.shape[0], dtype=np.int32)
    column = jax.lax.dynamic_index_in_dim(columns, k, 1, keepdims=False)
    pivot = jnp.argmax(jnp.where(rows >= at, jnp.abs(column), -1)).astype(np.int32)
    swapped = jnp.where(rows == at, pivot, jnp.where(rows == pivot, at, rows))
    columns, order, column = columns[swapped], order[swapped], column[swapped]
    is_pivot = rows == at
    unit = is_pivot.astype(columns.dtype)
    columns = jax.lax.dynamic_update_index_in_dim(columns, unit, k, 1)
    row = jax.lax.dynamic_index_in_dim(columns, at, 0, keepdims=False) / column[at]
    left = jnp.where(is_pivot, jnp.zeros((), columns.dtype), column)
    columns = columns - left[:, None] * row[None]
    return jax.lax.dynamic_update_index_in_dim(columns, row, at, 0), order
