"""Steps of affine maps, cut into runs of rows: ``(L W Rᵀ + Δ)[part] = L' W[part] Rᵀ + Δ[part]``.

That holds where L does not reach out of the part: for the identity, a diagonal, and blocks along
the diagonal that the part does not cut. So a large tensor goes through memory by runs of rows.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import jax
import numpy as np

from jaxmix.affine import AffineMap
from jaxmix.operators import (
    BlockDiagonal,
    Dense,
    Diagonal,
    Hadamard,
    Identity,
    LowRank,
    Operator,
    Product,
    Sum,
)

__all__ = ["cut", "light", "parts", "unit"]


def unit(steps: Sequence[AffineMap]) -> int | None:
    """How many rows have to stay together: a multiple of what every L mixes.

    Args:
        steps: maps of one matrix, the first one first.

    Returns:
        A number of rows; None if an L mixes all of them.

    Example:
        >>> from jaxmix.affine import identity
        >>> unit([identity((4, 2))])
        1
    """
    sizes = [_unit(step.left) for step in steps]
    return None if None in sizes else math.lcm(*(size or 1 for size in sizes))


def parts(rows: int, most: int, together: int | None) -> list[slice]:
    """The rows in runs of about one size, none of them cut where it must not be.

    Args:
        rows: how many there are.
        most: how many a run should have at the most.
        together: what `unit` said.

    Returns:
        The runs, in order; a single one where nothing may be cut.

    Example:
        >>> parts(10, 4, 2)
        [slice(0, 4, None), slice(4, 8, None), slice(8, 10, None)]
    """
    if together is None or rows <= most:
        return [slice(0, rows)]
    # Equal runs where the number of rows allows it: one shape is one compiled function.
    most = max(most, together) // together * together
    equal = (n for n in range(most, most // 2, -together) if rows % n == 0)
    size = next(equal, None) or -(-rows // (-(-rows // most) * together)) * together
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def light(step: AffineMap) -> AffineMap:
    """The same map with what is merely sliced in NumPy's arrays: JAX compiles a program a slice."""
    return AffineMap(step.left, step.right, _light(step.shift))


def cut(steps: Sequence[AffineMap], part: slice) -> list[AffineMap]:
    """The steps of a run of rows.

    Args:
        steps: maps of the whole matrix, the first one first.
        part: a run that `parts` gave for their `unit`.

    Returns:
        Maps of the run.
    """
    if part == slice(0, steps[0].shape[0] if steps else 0):
        return list(steps)
    return [AffineMap(_square(s.left, part), s.right, s.shift.rows(part)) for s in steps]


def _light(delta: Operator) -> Operator:
    """A Δ whose low ranks and dense terms are NumPy's."""
    if isinstance(delta, Sum):
        return Sum(tuple(map(_light, delta.terms)))
    is_sliced = isinstance(delta, LowRank | Hadamard | Dense)
    return jax.tree.map(np.asarray, delta) if is_sliced else delta


def _unit(left: Operator) -> int | None:
    """How many rows an L mixes; None for all of them."""
    if isinstance(left, Identity | Diagonal):
        return 1
    if isinstance(left, BlockDiagonal):
        return left.block_size
    if isinstance(left, Product):
        sizes = _unit(left.first), _unit(left.second)
        return None if None in sizes else math.lcm(*(size or 1 for size in sizes))
    return None


def _square(left: Operator, part: slice) -> Operator:
    """``L[part, part]``, which is all of ``L[part]`` that is not zero."""
    if isinstance(left, Diagonal):
        return replace(left, d=left.d[part])
    if isinstance(left, BlockDiagonal):
        size = left.block_size
        return BlockDiagonal(left.all_blocks()[part.start // size : part.stop // size], 1)
    if isinstance(left, Product):
        return Product(_square(left.first, part), _square(left.second, part))
    assert isinstance(left, Identity)
    return Identity(part.stop - part.start)
