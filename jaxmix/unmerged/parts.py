"""Joins the maps of adjacent sites in a leaf into one map."""

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
    """Returns the map of a matrix whose parts, ranges of rows, have their own maps.

    Args:
        maps: The map of each part.
        parts: The rows of each part, disjoint; all other rows stay unchanged.
        shape: (out, in) of the whole matrix.

    Returns:
        One map; None if a part transforms the inputs, which all parts share, or its own rows by
        more than a diagonal.

    Example:
        >>> double = AffineMap(Diagonal(jnp.full(1, 2.0)), Identity(1), Zero(1, 1))
        >>> both = joined([double], [range(1, 2)], (3, 1))
        >>> both(jnp.ones((3, 1)))[:, 0].tolist()
        [1.0, 2.0, 1.0]
    """
    if any(not isinstance(step.right, Identity) for step in maps):
        return None
    if any(not isinstance(step.left, Identity | Diagonal) for step in maps):
        return None
    rows, cols = shape
    shift: Operator = Zero(rows, cols)
    for step, part in zip(maps, parts, strict=True):
        shift = add(shift, multiply(selection(part, rows).T, step.shift))
    lefts = [(m.left, part) for m, part in zip(maps, parts, strict=True)]
    scales = [(left.d, part) for left, part in lefts if isinstance(left, Diagonal)]
    if not scales:
        return AffineMap(Identity(rows), Identity(cols), shift)
    d = reduce(
        lambda d, piece: d.at[piece[1].start : piece[1].stop].set(piece[0]),
        scales,
        jnp.ones(rows, scales[0][0].dtype),
    )
    return AffineMap(Diagonal(d), Identity(cols), shift)
