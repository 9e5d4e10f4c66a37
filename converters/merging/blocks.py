"""Cuts affine maps into runs of rows: ``(L W Rᵀ + Δ)[part] = L' W[part] Rᵀ + Δ[part]``.

This holds where L does not mix rows of the part with others: for the identity, a diagonal, and
diagonal blocks that the part does not cut. So a large tensor is processed in runs of rows.
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

__all__ = ["cut_rows", "row_runs", "row_unit", "with_numpy_factors"]


def row_unit(steps: Sequence[AffineMap]) -> int | None:
    """Returns the number of rows that must stay together: a multiple of what every L mixes.

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


def row_runs(rows: int, limit: int, unit: int | None) -> list[slice]:
    """Splits rows into runs of similar size.

    Args:
        rows: The number of rows.
        limit: The most rows that a run should have.
        unit: The number of rows that must stay together, as `row_unit` returns it.

    Returns:
        The runs, in order; a single one if all rows must stay together.

    Example:
        >>> row_runs(10, 4, 2)
        [slice(0, 4, None), slice(4, 8, None), slice(8, 10, None)]
    """
    if unit is None or rows <= limit:
        return [slice(0, rows)]
    # Equal runs where the number of rows allows it: one shape is one compiled function.
    limit = max(limit, unit) // unit * unit
    equal = (n for n in range(limit, limit // 2, -unit) if rows % n == 0)
    size = next(equal, None) or -(-rows // (-(-rows // limit) * unit)) * unit
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def with_numpy_factors(step: AffineMap) -> AffineMap:
    """Moves the factors of Δ to NumPy, where slicing rows compiles no JAX programs."""
    return AffineMap(step.left, step.right, _to_numpy(step.shift))


def cut_rows(steps: Sequence[AffineMap], part: slice) -> list[AffineMap]:
    """Returns the maps of a run of rows.

    Args:
        steps: Maps of the whole matrix in order of application.
        part: A run that `row_runs` returned for their `row_unit`.

    Returns:
        Maps of the run.
    """
    if part == slice(0, steps[0].shape[0] if steps else 0):
        return list(steps)
    return [AffineMap(_square(s.left, part), s.right, s.shift.rows(part)) for s in steps]


def _to_numpy(delta: Operator) -> Operator:
    """Moves the low-rank and dense terms of Δ to NumPy."""
    if isinstance(delta, Sum):
        return Sum(tuple(map(_to_numpy, delta.terms)))
    is_sliced = isinstance(delta, LowRank | Hadamard | Dense)
    return jax.tree.map(np.asarray, delta) if is_sliced else delta


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
