"""Adds the terms of an update to a dense matrix in one pass."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxmix.operators.backends import Backend, by_platform, row_major
from jaxmix.operators.base import Operator
from jaxmix.operators.blocks import Kronecker
from jaxmix.operators.compound import terms
from jaxmix.operators.lowrank import Hadamard, LowRank
from jaxmix.operators.simple import Zero

__all__ = ["added", "added_in_one_pass", "prepared"]

# The rows of a TPU's tile: a view that splits the rows at a multiple of it moves nothing.
_TILE_ROWS = 8


def added(
    x: Float[Array, "rows cols"], delta: Operator, *, is_transposed: bool = False
) -> Float[Array, "rows cols"]:
    """Returns ``x + Δ`` by the form that suits the platform, for reductions of the sum.

    Args:
        x: A matrix in the dtype of the arithmetic.
        delta: Δ, of the same shape.
        is_transposed: Whether x is the transpose of a stored matrix.
    """

    def in_one_pass(backend: Backend, x: Array, delta: Operator) -> Array:
        if is_transposed:
            x, delta = x.T, delta.T
        total = added_in_one_pass(backend, x, prepared(backend, delta), x.dtype)
        # Without it, XLA prefers the layout of the transpose, and copies the weight.
        total = row_major(total) if backend.has_tiles else total
        return total.T if is_transposed else total

    return by_platform(lambda x, delta: delta.added_to(x), in_one_pass, x, delta)


def prepared(backend: Backend, delta: Operator) -> tuple[Operator, ...]:
    """Returns Δ's terms in the form that `added_in_one_pass` takes, at most one of low rank.

    Args:
        backend: Whose form to choose.
        delta: Δ.
    """
    low: list[LowRank] = []
    rest: list[Operator] = []
    for term in terms(delta):
        if isinstance(term, Hadamard) and backend.is_low_rank(term):
            term = term.low_rank()
        if isinstance(term, LowRank):
            low.append(term)
        elif isinstance(term, Hadamard):
            rest.append(Hadamard(backend.prepared(term.left), backend.prepared(term.right)))
        elif not isinstance(term, Zero):
            rest.append(term)
    if not low:
        return tuple(rest)
    joined = low[0]
    if len(low) > 1:
        joined = LowRank(
            jnp.concatenate([term.b for term in low], 1),
            jnp.concatenate([term.a for term in low], 0),
        )
    return backend.prepared(joined), *rest


def added_in_one_pass(
    backend: Backend, x: Float[Array, "rows cols"], found: tuple[Operator, ...], dtype: jnp.dtype
) -> Float[Array, "rows cols"]:
    """Returns ``x + Δ`` as one expression that XLA makes one pass, where it can.

    A Kronecker product is added to x as (l, k, cols): there its rows and columns are those of X,
    repeated, times those of Y, tiled. XLA would undo this view, and write the product out.

    Args:
        backend: Which form to choose.
        x: The matrix, in the dtype in which it is stored, or wider.
        found: Δ's terms, as `prepared` returns them.
        dtype: The dtype of the result; sums are in the terms' dtype.
    """
    wide = _wide(x, dtype)
    grids = [term for term in found if isinstance(term, Kronecker)]
    split_at = _common_rows(grids) if x.dtype != wide else None
    if split_at is None:
        total = x.astype(wide)
        for term in found:
            total = _plus(backend, total, term)
        return total.astype(dtype)
    (rows, cols), size = x.shape, split_at
    total = jax.lax.optimization_barrier(x.reshape(rows // size, size, cols)).astype(wide)
    for term in found:
        total = total + _seen(backend, term, size, wide)
    return total.astype(dtype).reshape(rows, cols)


def _wide(x: Array, dtype: jnp.dtype) -> jnp.dtype:
    """The dtype of the sum."""
    return np.promote_types(np.promote_types(x.dtype, dtype), np.float32)


def _plus(backend: Backend, x: Array, term: Operator) -> Array:
    """``x + term``, in x's dtype."""
    match term:
        case LowRank():
            return x + backend.product(term, x.dtype)
        case Hadamard():
            return x + backend.product(term.left, x.dtype) * backend.product(term.right, x.dtype)
        case _:
            return term.added_to(x)


def _common_rows(grids: list[Kronecker]) -> int | None:
    """The rows k of Y of all Kronecker products, if they are the same and fill tiles."""
    sizes = {term.y.shape[0] for term in grids}
    if len(sizes) != 1 or (size := sizes.pop()) % _TILE_ROWS:
        return None
    return size


def _seen(backend: Backend, term: Operator, size: int, dtype: jnp.dtype) -> Array:
    """A term as (l, k, cols)."""
    match term:
        case Kronecker():
            wide = jnp.repeat(term.x, term.y.shape[1], axis=1)
            return wide[:, None, :] * jnp.tile(term.y, (1, term.x.shape[1]))[None]
        case LowRank():
            rows, rank = term.b.shape
            b = jax.lax.optimization_barrier(term.b.reshape(rows // size, size, rank))
            if rank <= backend.unrolled_rank:
                outer = (b[:, :, i : i + 1] * term.a[None, i : i + 1] for i in range(rank))
                return sum(outer, jnp.zeros((), dtype))
            return jnp.matmul(b, term.a, preferred_element_type=dtype)
        case Hadamard():
            left, right = (_seen(backend, one, size, dtype) for one in (term.left, term.right))
            return left * right
        case _:
            rows, cols = term.shape
            return term.dense().reshape(rows // size, size, cols)
