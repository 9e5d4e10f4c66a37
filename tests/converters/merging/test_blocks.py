"""The runs of rows of a large tensor."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix.affine import AffineMap
from jaxmix.converters.merging.blocks import row_runs, with_numpy_factors
from jaxmix.operators import Dense, Diagonal, Hadamard, Identity, LowRank, Sum


@pytest.mark.parametrize(
    ("rows", "limit", "unit", "sizes"),
    [
        (10, 10, 1, [10]),
        (10, 3, None, [10]),  # all rows must stay together
        (12, 5, 1, [4, 4, 4]),  # equal runs are preferred to the longest ones
        (16, 6, 1, [4, 4, 4, 4]),
        (10, 4, 2, [4, 4, 2]),
        (12, 4, 6, [6, 6]),  # a unit may exceed the limit
        (11, 4, 1, [4, 4, 3]),
        (13, 6, 1, [5, 5, 3]),
        (1, 1, 1, [1]),
    ],
)
def test_rows_are_split_into_similar_runs(
    rows: int, limit: int, unit: int | None, sizes: list[int]
) -> None:
    assert [run.stop - run.start for run in row_runs(rows, limit, unit)] == sizes


def test_runs_cover_all_rows_and_keep_units_together() -> None:
    """They follow each other, start at multiples of the unit, and have at most the limit."""
    for units, limit, unit in itertools.product(range(1, 30), range(1, 12), range(1, 5)):
        rows = units * unit
        runs = row_runs(rows, limit, unit)
        assert [runs[0].start, *(run.stop for run in runs)] == [*(run.start for run in runs), rows]
        assert all(run.start % unit == 0 for run in runs)
        assert all(0 < run.stop - run.start <= max(limit, unit) for run in runs)


def test_factors_of_a_shift_become_numpy_arrays() -> None:
    """L and R keep their arrays, and the map keeps its values."""
    factors = LowRank(jnp.ones((4, 2)), jnp.arange(6.0).reshape(2, 3))
    dense = Dense(jnp.full((4, 3), 2.0))
    left = Diagonal(jnp.arange(4.0))
    step = AffineMap(left, Identity(3), Sum((factors, dense, Hadamard(factors, factors))))
    moved = with_numpy_factors(step)
    assert all(isinstance(array, np.ndarray) for array in jax.tree.leaves(moved.shift))
    assert moved.left is left
    apply = jax.jit(lambda step, weight: step(weight))
    factor = jnp.ones((4, 3))
    np.testing.assert_array_equal(apply(moved, factor), apply(step, factor))
