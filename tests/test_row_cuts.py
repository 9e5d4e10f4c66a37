"""Affine maps of a run of rows equal the rows of the complete map."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix.affine import AffineMap
from jaxmix.operators import BlockDiagonal, Dense, Diagonal, Identity, LowRank, Operator, Product
from jaxmix.row_cuts import cut_rows, row_unit

ROWS, COLUMNS = 12, 5
RANDOM = np.random.default_rng(0)


def normal(*shape: int) -> jnp.ndarray:
    """Returns random numbers."""
    return jnp.asarray(RANDOM.normal(size=shape), jnp.float32)


def step(left: Operator) -> AffineMap:
    """Returns a map with this L, a rotation of columns and a low-rank Δ."""
    right = Dense(normal(COLUMNS, COLUMNS))
    return AffineMap(left, right, LowRank(normal(ROWS, 2), normal(2, COLUMNS)))


PAIRS = BlockDiagonal(normal(6, 2, 2), 1)
REPEATED = BlockDiagonal(normal(2, 3, 3), 2)
LEFTS: dict[str, tuple[Operator, int | None]] = {
    "identity": (Identity(ROWS), 1),
    "diagonal": (Diagonal(normal(ROWS)), 1),
    "blocks of 2": (PAIRS, 2),
    "repeated blocks of 3": (REPEATED, 3),
    "product": (Product(PAIRS, REPEATED), 6),
    "dense": (Dense(normal(ROWS, ROWS)), None),
    "product with dense": (Product(PAIRS, Dense(normal(ROWS, ROWS))), None),
}


@pytest.mark.parametrize("name", LEFTS)
def test_unit_is_the_number_of_mixed_rows(name: str) -> None:
    left, unit = LEFTS[name]
    assert row_unit([step(left)]) == unit


def test_unit_of_several_maps_is_a_common_multiple() -> None:
    """Each map's rows stay together; without maps, rows are independent."""
    assert row_unit([step(PAIRS), step(REPEATED)]) == 6
    assert row_unit([step(PAIRS), step(LEFTS["dense"][0])]) is None
    assert row_unit([]) == 1


@pytest.mark.parametrize("name", [name for name, (_, unit) in LEFTS.items() if unit])
def test_runs_equal_the_rows_of_the_complete_map(name: str) -> None:
    """Every run whose ends are multiples of the unit is checked, also for two maps in sequence."""
    left, unit = LEFTS[name]
    assert unit is not None
    steps, weight = [step(left), step(Diagonal(normal(ROWS)))], normal(ROWS, COLUMNS)
    expected = steps[1](steps[0](weight))
    for start, stop in itertools.combinations(range(0, ROWS + 1, unit), 2):
        output = weight[start:stop]
        for cut in cut_rows(steps, slice(start, stop)):
            output = cut(output)
        np.testing.assert_allclose(output, expected[start:stop], rtol=1e-5, atol=1e-5)
