"""Tiles of different sizes and ranks in each direction, against NumPy's blocks."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix.operators import Product, Tiles, Zero

from .kinds import close

pytestmark = pytest.mark.usefixtures("no_compiling")

GRID, TILE, RANK = (3, 2), (4, 5), 2


def tiles(rank: int = RANK) -> tuple[Tiles, np.ndarray]:
    """Tiles (3, 2) of (4, 5) each, and their matrix (12, 10)."""
    rng = np.random.default_rng(rank)
    b, a = rng.normal(size=(*GRID, TILE[0], rank)), rng.normal(size=(*GRID, rank, TILE[1]))
    return Tiles(jnp.asarray(b), jnp.asarray(a)), np.block([[*row] for row in b @ a])


def test_matrix_and_products() -> None:
    """Tile (m, n) is in row m and column n of the grid."""
    operator, matrix = tiles()
    rng = np.random.default_rng(0)
    right, left = rng.normal(size=(10, 3)), rng.normal(size=(3, 12))
    assert operator.shape == (12, 10)
    close(operator.dense(), matrix)
    close(operator @ jnp.asarray(right), matrix @ right)
    close(jnp.asarray(left) @ operator, left @ matrix)
    close(operator.T.dense(), matrix.T)


@pytest.mark.parametrize("swap", [False, True])
def test_smaller_factor_is_scaled(swap: bool) -> None:
    """Scaling changes the array with fewer numbers, and only that."""
    operator, matrix = tiles()
    operator, matrix = (operator.T, matrix.T) if swap else (operator, matrix)
    scaled = operator.scaled(-2.0)
    close(scaled.dense(), -2.0 * matrix)
    assert (scaled.a is operator.a) == (operator.b.size < operator.a.size)
    assert (scaled.b is operator.b) != (scaled.a is operator.a)


@pytest.mark.parametrize(
    ("rows", "strips"),
    [
        (slice(4, 8), 1),
        (slice(4, None), 2),
        (slice(5, 7), 1),
        (slice(3, 5), 2),
        (slice(None, None, -1), 3),
        (slice(1, 12, 6), 2),
    ],
)
def test_rows_hold_only_the_tiles_that_they_touch(rows: slice, strips: int) -> None:
    """Whole strips of tiles stay tiles; other rows select from the strips that cover them."""
    operator, matrix = tiles()
    part = operator.rows(rows)
    close(part.dense(), matrix[rows])
    inner = part.second if isinstance(part, Product) else part
    assert isinstance(inner, Tiles) and inner.b.shape[0] == strips
    assert isinstance(part, Tiles) == (rows in (slice(4, 8), slice(4, None)))


def test_no_rows() -> None:
    part = tiles()[0].rows(slice(5, 5))
    assert isinstance(part, Zero) and part.shape == (0, 10)


def test_costs_count_multiplications_and_additions() -> None:
    operator, _ = tiles(rank=3)
    assert operator.flops() == 2 * 3 * 12 * 10
    assert operator.matmul_flops(7) == 2 * 7 * 3 * (GRID[0] * GRID[1]) * sum(TILE)
