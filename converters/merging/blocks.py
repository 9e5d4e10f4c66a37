"""The runs of rows in which a large tensor is processed (see `jaxmix.row_cuts`)."""

import jax
import numpy as np

from jaxmix.affine import AffineMap
from jaxmix.operators import Dense, Hadamard, LowRank, Operator, Sum

__all__ = ["row_runs", "with_numpy_factors"]


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


def _to_numpy(delta: Operator) -> Operator:
    """Moves the low-rank and dense terms of Δ to NumPy."""
    if isinstance(delta, Sum):
        return Sum(tuple(map(_to_numpy, delta.terms)))
    is_sliced = isinstance(delta, LowRank | Hadamard | Dense)
    return jax.tree.map(np.asarray, delta) if is_sliced else delta
