"""Products and systems with large dense matrices, in forms that a TPU compiler handles in seconds.

Compiled for a v5e at 1024 × 4096 × 4096, one float32 product takes 14 to 21 s of CPU time. In a
loop over rows it takes from 1 to 26 s, the most where XLA keeps an operand in fast memory. In
blocks of all three sizes it takes 2 to 3 s.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxmix.operators.backends import Backend, by_platform
from jaxmix.operators.loops import carry

__all__ = ["inverse", "product", "solve", "solve_by_blocks"]

# The width of the TPU's matrix unit.
_BLOCK = 128
# The rows, the inner dimension and the columns of a product in one iteration, at most. XLA unrolls
# a product whose operands are in the chip's fast memory.
_BLOCKS = 512, 512, 512


def product(a: Float[Array, "n k"], b: Float[Array, "k m"]) -> Float[Array, "n m"]:
    """Returns ``A B`` at the highest precision.

    Args:
        a: A, in float32 or wider.
        b: B.

    Example:
        >>> product(jnp.eye(2), jnp.array([[2.0], [3.0]])).tolist()
        [[2.0], [3.0]]
    """

    def on_accelerator(backend: Backend, a: Array, b: Array) -> Array:
        return _product_in_blocks(a, b) if backend.has_loops else _matmul(a, b)

    return by_platform(_matmul, on_accelerator, a, b)


def _matmul(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision="highest")


def _product_in_blocks(a: Array, b: Array) -> Array:
    """The product by loops over blocks of the result and over the inner dimension."""
    (n, k), m = a.shape, b.shape[1]
    counts = [-(-size // block) for size, block in zip((n, k, m), _BLOCKS, strict=True)]
    rows, inner, cols = (-(-size // count) for size, count in zip((n, k, m), counts, strict=True))
    a = jnp.pad(a, ((0, counts[0] * rows - n), (0, counts[1] * inner - k)))
    b = jnp.pad(b, ((0, counts[1] * inner - k), (0, counts[2] * cols - m)))

    numbers = [jnp.arange(count, dtype=np.int32) for count in counts]

    # Otherwise a gradient stores the operands of all iterations.
    @jax.checkpoint
    def block(i: Array, j: Array) -> Array:
        def step(total: Array, k: Array) -> tuple[Array, None]:
            left = jax.lax.dynamic_slice(a, (i * rows, k * inner), (rows, inner))
            right = jax.lax.dynamic_slice(b, (k * inner, j * cols), (inner, cols))
            return total + _matmul(left, right), None

        zeros = carry(jnp.zeros((rows, cols), jnp.result_type(a, b)), a, b)
        return jax.lax.scan(step, zeros, numbers[1])[0]

    def strip(i: Array) -> Array:
        blocks = jax.lax.map(lambda j: block(i, j), numbers[2])
        return jnp.moveaxis(blocks, 0, 1).reshape(rows, -1)

    strips = jax.lax.map(strip, numbers[0])
    return strips.reshape(-1, strips.shape[2])[:n, :m]


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
        return _implicit(a, b) if backend.has_loops else jnp.linalg.solve(a, b)

    return by_platform(jnp.linalg.solve, on_accelerator, a, b)


def _implicit(a: Array, b: Array) -> Array:
    """The solution by blocks. Gradients solve the transposed system."""
    return jax.lax.custom_linear_solve(
        lambda x: _matmul(a, x),
        carry(b, a),  # the solution varies along the axes of both
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


@jax.custom_jvp
def inverse(a: Float[Array, "k n n"]) -> Float[Array, "k n n"]:
    """Returns the inverses of matrices whose symmetric part is the identity, or larger.

    These need no pivots: what an elimination leaves has such a symmetric part too.

    Args:
        a: The matrices, in float32 or wider.

    Example:
        >>> inverse(jnp.array([[[1.0, 1.0], [-1.0, 1.0]]])).tolist()
        [[[0.5, -0.5], [0.5, 0.5]]]
    """
    # The last axis fills the lanes of a TPU.
    return jnp.moveaxis(
        jax.lax.fori_loop(0, a.shape[1], _invert_column, jnp.moveaxis(a, 0, 2)), 2, 0
    )


@inverse.defjvp
def _inverse_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    inverses = inverse(*primals)
    return inverses, -_matmul(_matmul(inverses, tangents[0]), inverses)


def _invert_column(k: Array | int, a: Float[Array, "n n k"]) -> Float[Array, "n n k"]:
    """One step of an inversion in place by Gauss-Jordan elimination."""
    k = jnp.asarray(k)  # a number under `jax.disable_jit`
    is_pivot = (jnp.arange(a.shape[0], dtype=k.dtype) == k)[:, None]
    column = jax.lax.dynamic_index_in_dim(a, k, 1, keepdims=False)
    row = jax.lax.dynamic_index_in_dim(a, k, 0, keepdims=False)
    row = jnp.where(is_pivot, 1, row) / jax.lax.dynamic_index_in_dim(row, k, 0)
    others = jnp.where(is_pivot[None], 0, a) - column[:, None] * row[None]
    return jnp.where(is_pivot[:, None], row[None], others)


def _eliminate_block(block: Array, system: Array) -> Array:
    """Makes a block of columns those of the identity, by operations on rows."""
    size, start = system.shape[0], block * _BLOCK
    columns = jax.lax.dynamic_slice_in_dim(system, start, _BLOCK, 1)
    order = carry(jnp.arange(size, dtype=np.int32), columns)
    step = partial(_eliminate_column, start)
    columns, order = jax.lax.fori_loop(0, _BLOCK, step, (columns, order))
    system = system[order]
    pivots = jax.lax.dynamic_slice_in_dim(system, start, _BLOCK, 0)
    others = jax.lax.dynamic_update_slice_in_dim(system, jnp.zeros_like(pivots), start, 0)
    return others + _matmul(columns, pivots)


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
