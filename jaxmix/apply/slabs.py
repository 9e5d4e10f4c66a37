"""Adds terms to a matrix on a CPU, slab by slab: runs of rows that fit the cache of a core.

XLA writes each product of factors to memory before a loop adds it. In a slab that memory is cache,
so that the matrix is read and written once for all terms, without a temporary of its size.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from jaxmix.operators import Dense, Hadamard, Kronecker, LowRank, Operator
from jaxmix.placement.form import arithmetic

__all__ = ["added", "has_slabs"]

# The numbers of a slab: 1 MB in float32. With two products beside it, it stays in 2 MB of cache.
SLAB = 1 << 18
# The fewest rows of a slab, below which products of factors are slow.
FEWEST_ROWS = 32


def has_slabs(term: Operator) -> bool:
    """Whether the rows of a term are cheap to compute separately."""
    return isinstance(term, LowRank | Hadamard | Kronecker | Dense)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def added(
    matrix: Float[Array, "rows cols"], terms: tuple[Operator, ...], dtype: Any
) -> Float[Array, "rows cols"]:
    """Returns the sum of a matrix and terms. If the matrix is donated, it is changed in place.

    Args:
        matrix: The matrix, in any float dtype.
        terms: Terms for which `has_slabs` is true, at least one.
        dtype: The dtype of the result. The sum is in float32 or wider.
    """
    if not matrix.size:
        return matrix.astype(dtype)
    rows, cols = matrix.shape
    size, width = _slab_rows(rows, cols), _width(terms, cols)
    # For one run of columns a third axis would make XLA copy the matrix.
    start = matrix if width == cols else matrix.reshape(rows, cols // width, width)

    def change(at: Array | int, total: Array, size: int) -> Array:
        # Rows that are not changed yet, which XLA can change in place if the dtypes are equal.
        unchanged = total if matrix.dtype == dtype else _bits(start)
        slab = _floats(lax.dynamic_slice_in_dim(unchanged, at, size), matrix.dtype)
        slab = slab.astype(arithmetic(matrix.dtype))
        for term in terms:
            slab = slab + _slab_of(term, at, size).reshape(slab.shape)
        return lax.dynamic_update_slice_in_dim(total, _bits(slab.astype(dtype)), at, 0)

    total = _bits(start if matrix.dtype == dtype else jnp.zeros(start.shape, dtype))
    if rows > size:
        total = lax.fori_loop(0, rows // size, lambda i, x: change(i * size, x, size), total)
    if rows == size or rows % size:
        total = change(rows - rows % size if rows > size else 0, total, rows % size or size)
    return _floats(total, dtype).reshape(rows, cols)


@added.defjvp
def _added_jvp(dtype: Any, primals: Any, tangents: Any) -> tuple[Array, Array]:
    """The derivative of the sum in one expression: that of a loop copies the matrix per slab."""

    def whole(matrix: Array, terms: tuple[Operator, ...]) -> Array:
        total = matrix.astype(arithmetic(matrix.dtype))
        for term in terms:
            total = term.added_to(total)
        return total.astype(dtype)

    return added(*primals, dtype), jax.jvp(whole, primals, tangents)[1]


def _bits(x: Array) -> Array:
    """The bits of narrow floats as integers. XLA widens all of an array to put floats into it."""
    if x.dtype.itemsize >= 4:
        return x
    return lax.bitcast_convert_type(x, np.dtype(f"uint{8 * x.dtype.itemsize}"))


def _floats(x: Array, dtype: Any) -> Array:
    """The floats that have these bits."""
    return x if x.dtype == dtype else lax.bitcast_convert_type(x, dtype)


def _slab_rows(rows: int, cols: int) -> int:
    """The rows of a slab, which divide all rows if a number near to the best does."""
    most = max(SLAB // cols, FEWEST_ROWS)
    if rows <= most:
        return rows
    return next((size for size in range(most, most // 2, -1) if rows % size == 0), most)


def _width(terms: tuple[Operator, ...], cols: int) -> int:
    """The size of the last axis of slabs: the columns of a Kronecker product's Y, if there is one.

    On such a slab the product is a broadcast, which takes half of the time of other forms.
    """
    return next((term.y.shape[1] for term in terms if isinstance(term, Kronecker)), cols)


def _slab_of(term: Operator, at: Array | int, size: int) -> Float[Array, "size ..."]:
    """The rows of a term in the slab that starts at a row; its columns may be split into runs."""
    match term:
        case LowRank():
            return _cut(term.b, at, size) @ term.a
        case Hadamard():
            left, right = (_cut(side.b, at, size) @ side.a for side in (term.left, term.right))
            return left * right
        case Kronecker():
            rows, k = at + np.arange(size, dtype=np.int32), term.y.shape[0]
            x, y = jnp.asarray(term.x)[rows // k], jnp.asarray(term.y)[rows % k]
            return x[:, :, None] * y[:, None, :]
        case _:
            return _cut(term.dense(), at, size)


def _cut(x: Array, at: Array | int, size: int) -> Array:
    """The rows of an array in the slab that starts at a row."""
    return lax.dynamic_slice_in_dim(jnp.asarray(x), at, size)
