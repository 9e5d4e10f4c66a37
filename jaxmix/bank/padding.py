"""Operators padded to the sizes of stacks, so that similar ones share a stack.

Ranks and counts are padded with zeros to the next power of two.
"""

from collections.abc import Hashable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxmix.operators import (
    Hadamard,
    Identity,
    LowRank,
    Operator,
    Permutation,
    Product,
    Sparse,
    Sum,
    Zero,
    multiply,
    terms,
)
from jaxmix.operators.lowrank import KHATRI_RAO_RANK

__all__ = ["padded_factors", "padded_terms", "structure_key"]


def padded_terms(delta: Operator) -> list[Operator]:
    """Returns the terms of a Δ, padded to the sizes of stacks."""
    # Identities and permutations hold no values, so they become operators that do.
    valued = (t.scaled(1.0) if isinstance(t, Identity | Permutation) else t for t in terms(delta))
    return [_padded(term) for term in valued if not isinstance(term, Zero)]


def padded_factors(side: Operator) -> list[Operator]:
    """Returns an L or R, padded to the size of a stack; an empty list for the identity."""
    return [] if isinstance(side, Identity) else [_padded(side)]


def structure_key(item: Any, axis: int | None = None) -> Hashable:
    """Returns a key that is equal for items that can share a stack.

    Args:
        item: An operator, or an array.
        axis: An axis of its arrays that is not part of the item, such as that of slots.
    """
    leaves, structure = jax.tree.flatten(item)
    shapes = (tuple(n for k, n in enumerate(x.shape) if k != axis) for x in leaves)
    return structure, tuple(zip(shapes, (str(x.dtype) for x in leaves), strict=True))


def _padded(x: Any) -> Any:
    """Pads an operator's ranks and counts; it may have a leading axis of layers."""
    match x:
        case LowRank():
            return LowRank(_pad(x.b, -1), _pad(x.a, -2))
        case Hadamard():
            # A small one shares the stacks of low ranks.
            if x.left.a.shape[-2] * x.right.a.shape[-2] > KHATRI_RAO_RANK:
                return Hadamard(_padded(x.left), _padded(x.right))
            to_low_rank = Hadamard.low_rank if x.left.a.ndim == 2 else jax.vmap(Hadamard.low_rank)
            return _padded(to_low_rank(x))
        case Sparse():
            return Sparse(_pad(x.values, -1), _pad(x.indices, -1), x.n_rows, x.n_cols)
        case Sum():
            return Sum(tuple(map(_padded, x.terms)))
        case Product():
            return _padded_product(_padded(x.first), _padded(x.second))
        case _:
            return x


def _padded_product(first: Any, second: Any) -> Any:
    """Returns a product; a small Hadamard product that became a low rank takes the other in."""
    low = next((x for x in (first, second) if isinstance(x, LowRank)), None)
    if low is None:
        return Product(first, second)
    return (multiply if low.a.ndim == 2 else jax.vmap(multiply))(first, second)


def _pad(x: Array, axis: int) -> Array:
    """Pads an axis with zeros at its end, to the next power of two."""
    size = x.shape[axis]
    target = 1 << max(size - 1, 0).bit_length()
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, target - size)
    return jnp.pad(x, widths)
