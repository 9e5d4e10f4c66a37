"""Cuts affine maps into runs of rows: ``(L W Rᵀ + Δ)[part] = L' W[part] Rᵀ + Δ[part]``.

This holds if L does not mix rows of the part with others: for the identity, a diagonal, and
diagonal blocks that the part does not cut. It is used to process a large tensor in runs of rows,
and to apply an update of a fused weight to the weights that are fused in it.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

from jaxmix.affine import AffineMap
from jaxmix.operators import BlockDiagonal, Diagonal, Identity, Operator, Product

__all__ = ["cut_rows", "row_unit"]


def row_unit(steps: Sequence[AffineMap]) -> int | None:
    """Returns the number of rows that must stay together: a multiple of those that each L mixes.

    Args:
        steps: Maps of one matrix in order of application.

    Returns:
        A number of rows; None if an L mixes all of them.

    Example:
        >>> from jaxmix.affine import identity
        >>> row_unit([identity((4, 2))])
        1
    """
    sizes = [_unit(step.left) for step in steps]
    return None if None in sizes else math.lcm(*(size or 1 for size in sizes))


def cut_rows(steps: Sequence[AffineMap], part: slice) -> list[AffineMap]:
    """Returns the maps of a run of rows.

    Args:
        steps: Maps of the whole matrix in order of application.
        part: A run with start and stop, both multiples of their `row_unit`.

    Returns:
        Maps of the run.

    Example:
        >>> from jaxmix.affine import identity
        >>> [step.shape for step in cut_rows([identity((4, 2))], slice(1, 3))]
        [(2, 2)]
    """
    if part == slice(0, steps[0].shape[0] if steps else 0):
        return list(steps)
    return [AffineMap(_square(s.left, part), s.right, s.shift.rows(part)) for s in steps]


def _unit(left: Operator) -> int | None:
    """Returns how many rows an L mixes; None if it mixes all of them."""
    if isinstance(left, Identity | Diagonal):
        return 1
    if isinstance(left, BlockDiagonal):
        return left.block_size
    if isinstance(left, Product):
        sizes = _unit(left.first), _unit(left.second)
        return None if None in sizes else math.lcm(*(size or 1 for size in sizes))
    return None


def _square(left: Operator, part: slice) -> Operator:
    """Returns ``L[part, part]``, which holds all nonzero elements of ``L[part]``."""
    if isinstance(left, Diagonal):
        return replace(left, d=left.d[part])
    if isinstance(left, BlockDiagonal):
        size = left.block_size
        return BlockDiagonal(left.all_blocks()[part.start // size : part.stop // size], 1)
    if isinstance(left, Product):
        return Product(_square(left.first, part), _square(left.second, part))
    assert isinstance(left, Identity)
    return Identity(part.stop - part.start)
