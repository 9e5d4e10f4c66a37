"""Adds terms to a matrix on a CPU, slab by slab: runs of rows that fit the cache of a core.

XLA writes each product of factors to memory before a loop adds it. In a slab that memory is cache,
so that the matrix is read and written once for all terms, without a temporary of its size.
"""

from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from jaxmix.operators import Dense, Hadamard, Kronecker, LowRank, Operator
from jaxmix.operators.loops import carry

__all__ = ["added", "has_slabs"]

# The numbers of a slab: 1 MB in float32. With two products beside it, it stays in 2 MB of cache.
SLAB = 1 << 18
# The fewest rows of a slab, below which products of factors are slow.
FEWEST_ROWS = 32


def has_slabs(term: Operator) -> bool:
    """Whether the rows of a term are cheap to compute separately."""
    return isinstance(term, LowRank | Hadamard | Kronecker | Dense)


@jax.custom_jvp
def added(
    matrix: Float[Array, "rows cols"], terms: tuple[Operator, ...]
) -> Float[Array, "rows cols"]:
    """Returns the sum of a matrix and terms. If the matrix is donated, it is changed in place.

    Args:
        matrix: The matrix, in float32 or wider.
        terms: Terms for which `has_slabs` is true, at least one.
    """
    if not matrix.size:
        return matrix
    rows, cols = matrix.shape
    size, width = _slab_rows(rows, cols), _width(terms, cols)

    def change(at: Array | int, total: Array, size: int) -> Array:
        slab = lax.dynamic_slice_in_dim(total, at, size)
        for term in terms:
            slab = slab + _slab_of(term, at, size).reshape(slab.shape)
        return lax.dynamic_update_slice_in_dim(total, slab, at, 0)

    # For one run of columns a third axis would make XLA copy the matrix.
    total = carry(matrix, terms)
    total = total if width == cols else total.reshape(rows, cols // width, width)
    if rows > size:
        total = lax.fori_loop(0, rows // size, lambda i, x: change(i * size, x, size), total)
    if rows == size or rows % size:
        total = change(rows - rows % size if rows > size else 0, total, rows % size or size)
    return total.reshape(rows, cols)


@added.defjvp
def _added_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    """The derivative of the sum in one expression: that of a loop copies the matrix per slab."""

    def in_one_expression(matrix: Array, terms: tuple[Operator, ...]) -> Array:
        return reduce(lambda total, term: term.added_to(total), terms, matrix)

    return added(*primals), jax.jvp(in_one_expression, primals, tangents)[1]


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
