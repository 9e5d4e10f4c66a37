"""Adds the terms of an update to a dense matrix in one pass."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxmix.operators.backends import Backend, by_platform
from jaxmix.operators.base import Operator
from jaxmix.operators.blocks import Kronecker
from jaxmix.operators.compound import terms
from jaxmix.operators.lowrank import Hadamard, LowRank
from jaxmix.operators.scattering import dense, is_in_runs
from jaxmix.operators.simple import Zero
from jaxmix.operators.sparse import Sparse

__all__ = ["added", "added_in_one_pass", "added_in_view", "common_rows", "plus", "prepared"]

# The rows of a TPU's tile: a view that splits the rows at a multiple of it moves nothing.
_TILE_ROWS = 8


def added(
    x: Float[Array, "rows cols"],
    delta: Operator,
    *,
    stored: Any = None,
    is_transposed: bool = False,
) -> Float[Array, "rows cols"]:
    """Returns ``x + Δ`` by the form that suits the platform, for reductions of the sum over rows.

    Args:
        x: A matrix in the dtype of the arithmetic.
        delta: Δ, of the same shape.
        stored: The dtype in which x is stored, if it is a leaf or its transpose; otherwise None.
        is_transposed: Whether x is the transpose of a leaf.
    """

    def in_one_pass(backend: Backend, x: Array, delta: Operator) -> Array:
        dtype = x.dtype
        # Casting back to the stored dtype is exact, and XLA leaves out both casts.
        x = x if stored is None else x.astype(stored)
        x, delta = (x.T, delta.T) if is_transposed else (x, delta)
        # Without a view, XLA copies x into the other order for some reductions.
        is_viewed = backend.has_tiles and stored is not None
        total = added_in_one_pass(
            backend, x, delta, dtype, is_leaf=stored is not None, is_viewed=is_viewed
        )
        return total.T if is_transposed else total

    if jnp.finfo(x.dtype).bits < 32:  # the forms are made for the arithmetic of weights
        return delta.added_to(x)
    return by_platform(lambda x, delta: delta.added_to(x), in_one_pass, x, delta)


def prepared(backend: Backend, delta: Operator, *, view: int | None = None) -> tuple[Operator, ...]:
    """Returns Δ's terms in the form that `plus` takes, at most one of low rank.

    Args:
        backend: Whose form to choose.
        delta: Δ.
        view: The size k of the second axis if the terms are used as (l, k, cols).
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
        b = jnp.concatenate([term.b for term in low], 1)
        joined = LowRank(b, jnp.concatenate([term.a for term in low], 0))
        # Otherwise XLA writes out what it takes to join them several times.
        joined = jax.lax.optimization_barrier(joined)
    return backend.prepared(joined, view=view), *rest


def added_in_one_pass(
    backend: Backend,
    x: Float[Array, "rows cols"],
    delta: Operator,
    dtype: Any,
    *,
    is_leaf: bool,
    is_viewed: bool = False,
) -> Float[Array, "rows cols"]:
    """Returns ``x + Δ`` as one expression that XLA makes one pass, where it can.

    A Kronecker product is added to x as (l, k, cols): there its rows and columns are those of X,
    repeated, times those of Y, tiled. XLA would undo this view, and write the product out.

    Args:
        backend: Which form to choose.
        x: The matrix, in the dtype in which it is stored, or wider.
        delta: Δ.
        dtype: The dtype of the result; the sum is in float32 or wider.
        is_leaf: Whether x is a leaf, so that a view of it needs no copy.
        is_viewed: Whether to add all terms to a view with three axes.
    """
    wide = np.promote_types(np.promote_types(x.dtype, dtype), np.float32)
    rows, cols = x.shape
    size = common_rows(terms(delta))
    if size is None and is_viewed and rows % _TILE_ROWS == 0:
        size = _TILE_ROWS
    if size is None or not is_leaf:
        return plus(backend, x.astype(wide), prepared(backend, delta)).astype(dtype)
    return added_in_view(backend, x, delta, size, wide).astype(dtype).reshape(rows, cols)


def added_in_view(
    backend: Backend, x: Float[Array, "rows cols"], delta: Operator, size: int, dtype: Any
) -> Float[Array, "l size cols"]:
    """Returns ``x + Δ`` as an array of three axes, the rows split into runs.

    Args:
        backend: Which form to choose.
        x: A leaf.
        delta: Δ.
        size: The rows of a run, as `common_rows` returns them.
        dtype: The dtype of the sum, float32 or wider.
    """
    rows, cols = x.shape
    total = jax.lax.optimization_barrier(x.reshape(rows // size, size, cols)).astype(dtype)
    for term in prepared(backend, delta, view=size):
        total = total + _viewed(backend, term, size, dtype)
    return total


def common_rows(found: Iterable[Operator]) -> int | None:
    """Returns the rows k of Y of all Kronecker products, if they are the same and fill tiles.

    Args:
        found: The terms of a sum. Those of other structures are left out.
    """
    sizes = {term.y.shape[0] for term in found if isinstance(term, Kronecker)}
    if len(sizes) != 1 or (size := sizes.pop()) % _TILE_ROWS:
        return None
    return size


def plus(
    backend: Backend, x: Float[Array, "rows cols"], found: tuple[Operator, ...]
) -> Float[Array, "rows cols"]:
    """Returns the sum of x and terms, in the dtype of x.

    Args:
        backend: Which form to choose.
        x: The matrix.
        found: The terms, as `prepared` returns them.
    """
    for term in found:
        x = _plus(backend, x, term)
    return x


def _plus(backend: Backend, x: Array, term: Operator) -> Array:
    """``x + term``, in x's dtype."""
    match term:
        case LowRank():
            return x + backend.product(term.b, term.a, x.dtype)
        case Hadamard():
            left, right = (backend.product(of.b, of.a, x.dtype) for of in (term.left, term.right))
            return x + left * right
        case Sparse() if is_in_runs(backend, term):
            return x + dense(term, x.dtype)
        case _:
            return term.added_to(x)


def _viewed(backend: Backend, term: Operator, size: int, dtype: jnp.dtype) -> Array:
    """A term as (l, k, cols)."""
    match term:
        case Kronecker() if term.y.shape[0] == size:
            wide = jnp.repeat(term.x, term.y.shape[1], axis=1)
            return wide[:, None, :] * jnp.tile(term.y, (1, term.x.shape[1]))[None]
        case LowRank():
            rows, rank = term.b.shape
            b = jax.lax.optimization_barrier(term.b.reshape(rows // size, size, rank))
            return backend.product(b, term.a, dtype)
        case Hadamard():
            left, right = (_viewed(backend, one, size, dtype) for one in (term.left, term.right))
            return left * right
        case _:
            rows, cols = term.shape
            if isinstance(term, Sparse) and is_in_runs(backend, term):
                return dense(term, dtype).reshape(rows // size, size, cols)
            return term.dense().reshape(rows // size, size, cols)
