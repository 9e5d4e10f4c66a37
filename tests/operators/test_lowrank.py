"""Low-rank matrices, and the elementwise product of two of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix.operators import Hadamard, LowRank

from .kinds import close, low_rank


def test_hadamard_multiplies_the_cheaper_way() -> None:
    """Large matrices use the Khatri-Rao product; small ones of high rank are made dense."""
    rng = np.random.default_rng(0)

    def hadamard(size: int, rank: int) -> Hadamard:
        first, second = (low_rank(rank)(rng, size, size)[0] for _ in range(2))
        assert isinstance(first, LowRank) and isinstance(second, LowRank)
        return Hadamard(first, second)

    def products(op: Hadamard) -> set[tuple[int, ...]]:
        jaxpr = jax.make_jaxpr(lambda o, v: o @ v)(op, jnp.ones((op.shape[1], 3)))
        dots = [e for e in jaxpr.eqns if e.primitive.name == "dot_general"]
        return {e.outvars[0].aval.shape for e in dots}

    assert (64, 64) not in products(hadamard(64, 2))
    assert (8, 8) in products(hadamard(8, 6))
    cheap = hadamard(64, 2)
    close(cheap.low_rank().dense(), np.asarray(cheap.dense()))
    assert cheap.low_rank().rank == 4
    assert cheap.rows(slice(3, 3)).low_rank().shape == (0, 64)


@pytest.mark.parametrize("shape", [(3, 8), (8, 3)])
def test_smaller_factor_is_scaled(shape: tuple[int, int]) -> None:
    """Scaling changes the array with fewer numbers, and only that."""
    operator, matrix = low_rank(2)(np.random.default_rng(0), *shape)
    assert isinstance(operator, LowRank)
    scaled = operator.scaled(-2.0)
    close(scaled.dense(), -2.0 * matrix)
    assert (scaled.a is operator.a, scaled.b is operator.b) == (shape == (3, 8), shape == (8, 3))
    pair = Hadamard(operator, operator).scaled(-2.0)
    close(pair.dense(), -2.0 * matrix**2)
    assert pair.right is operator


def test_rank_of_zero_is_the_zero_matrix() -> None:
    empty = LowRank(jnp.ones((3, 0)), jnp.ones((0, 5)))
    assert empty.rank == 0 and empty.flops() == 0
    close(empty.dense(), np.zeros((3, 5)))
    close(jnp.ones((2, 3)) @ empty, np.zeros((2, 5)))
    ones = LowRank(jnp.ones((3, 1)), jnp.ones((1, 5)))
    assert Hadamard(empty, ones).low_rank().b.shape == (3, 0)
    close(Hadamard(empty, ones).low_rank().dense(), np.zeros((3, 5)))
