"""One map of a leaf out of the maps of its parts: sites that lie side by side in it."""

from collections.abc import Sequence
from functools import reduce

import jax.numpy as jnp

from jaxmix.affine import AffineMap
from jaxmix.operators import Diagonal, Identity, Operator, Zero, add, multiply
from jaxmix.operators.sparse import selection

__all__ = ["joined"]


def joined(
    maps: Sequence[AffineMap], parts: Sequence[range], shape: tuple[int, int]
) -> AffineMap | None:
    """The map of a matrix whose parts, runs of its rows, have maps of their own.

    Args:
        maps: the map of each part.
        parts: the rows of each, no two in common; the rows of none stay as they are.
        shape: (out, in) of the whole.

    Returns:
        One map; None where a part turns the inputs, which the others share, or its own rows by more
        than a diagonal.

    Example:
        >>> double = AffineMap(Diagonal(jnp.full(1, 2.0)), Identity(1), Zero(1, 1))
        >>> both = joined([double], [range(1, 2)], (3, 1))
        >>> both(jnp.ones((3, 1)))[:, 0].tolist()
        [1.0, 2.0, 1.0]
    """
    if any(not isinstance(one.right, Identity) for one in maps):
        return None
    if any(not isinstance(one.left, Identity | Diagonal) for one in maps):
        return None
    rows, cols = shape
    shift: Operator = Zero(rows, cols)
    for one, part in zip(maps, parts, strict=True):
        shift = add(shift, multiply(selection(part, rows).T, one.shift))
    lefts = [(m.left, part) for m, part in zip(maps, parts, strict=True)]
    scales = [(left.d, part) for left, part in lefts if isinstance(left, Diagonal)]
    if not scales:
        return AffineMap(Identity(rows), Identity(cols), shift)
    d = reduce(
        lambda d, one: d.at[one[1].start : one[1].stop].set(one[0]),
        scales,
        jnp.ones(rows, scales[0][0].dtype),
    )
    return AffineMap(Diagonal(d), Identity(cols), shift)
