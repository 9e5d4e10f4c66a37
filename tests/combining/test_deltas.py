"""Effects of several adapters at one site, combined by each method's formula."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix.combining.deltas import combined_effect
from jaxmix.combining.formulas import Options
from jaxmix.combining.methods import METHODS
from jaxmix.effects import Effect
from jaxmix.operators import Dense, LowRank, Operator, Zero

from . import naive

OPTIONS = Options(density=0.6)


def normal(*shape: int, seed: int = 0) -> Any:
    return jnp.asarray(np.random.default_rng([seed, *shape]).normal(size=shape))


def low(rank: int, seed: int = 0) -> LowRank:
    return LowRank(normal(5, rank, seed=seed), normal(rank, 7, seed=seed))


def dense_of(delta: Operator | None) -> np.ndarray:
    assert delta is not None
    return np.asarray(delta.dense())


def test_a_sum_of_low_ranks_stays_one() -> None:
    """Also with an adapter of Δ = 0 and one that does not touch the weight; with a dense Δ not."""
    effects = [Effect(low(1)), Effect(Zero(5, 7)), Effect(None, normal(5)), Effect(low(2, 1))]
    weights = [0.5, 3.0, 1.0, -2.0]
    combined = combined_effect(effects, weights, METHODS["linear"], OPTIONS, None)
    expected = 0.5 * dense_of(low(1)) - 2 * dense_of(low(2, 1))
    assert isinstance(combined.weight, LowRank)
    np.testing.assert_allclose(combined.weight.dense(), expected, atol=1e-12)
    assert combined.bias is not None
    np.testing.assert_allclose(combined.bias, normal(5), rtol=1e-12)
    effects[1] = Effect(Dense(normal(5, 7)))
    combined = combined_effect(effects, weights, METHODS["cat"], OPTIONS, None)
    assert isinstance(combined.weight, Dense)
    np.testing.assert_allclose(combined.weight.dense(), expected + 3 * normal(5, 7), atol=1e-12)


@pytest.mark.parametrize("method", ["ties", "magnitude_prune", "breadcrumbs"])
def test_an_untouched_weight_counts_as_zeros(method: str) -> None:
    """For methods in which zeros take part; a bias is combined like a matrix."""
    weights = [1.0, -0.5, 0.7]
    effects = [Effect(low(2), normal(5)), Effect(None, None), Effect(Dense(normal(5, 7)))]
    combined = combined_effect(effects, weights, METHODS[method], OPTIONS, None)
    matrices = [dense_of(low(2)), np.zeros((5, 7)), np.asarray(normal(5, 7))]
    expected = naive.NAIVE[method](matrices, weights, 0.6)
    np.testing.assert_allclose(dense_of(combined.weight), expected, atol=1e-12)
    columns = [np.asarray(normal(5))[:, None], np.zeros((5, 1)), np.zeros((5, 1))]
    expected = naive.NAIVE[method](columns, weights, 0.6)
    assert combined.bias is not None
    np.testing.assert_allclose(combined.bias, expected[:, 0], atol=1e-12)


@pytest.mark.parametrize("is_dense", [False, True])
def test_knots_of_low_ranks_needs_no_dense_matrix(is_dense: bool) -> None:
    """The space of all Δᵢ comes from the factors; the result is a low rank in any case."""
    effects = [Effect(low(1)), Effect(Dense(normal(5, 7)) if is_dense else low(2, 1))]
    combined = combined_effect(effects, [1.0, -0.5], METHODS["knots"], OPTIONS, None)
    signed = [dense_of(effects[0].weight), -dense_of(effects[1].weight)]
    expected = naive.knots(signed, np.array([1.0, 0.5]), 0.6)
    assert isinstance(combined.weight, LowRank)
    assert combined.weight.rank == (5 if is_dense else 3)
    np.testing.assert_allclose(combined.weight.dense(), expected, atol=1e-10)


def test_noise_is_added_by_weight() -> None:
    """Negative weights too; a site of which only the bias changes has no Δ and no noise."""
    effects = [Effect(Dense(normal(5, 7)), None, 0.5), Effect(low(1), None, 2.0)]
    combined = combined_effect(effects, [-2.0, 0.25], METHODS["linear"], OPTIONS, None)
    assert float(combined.noise) == 1.5
    effects = [Effect(None, normal(5), 9.0), Effect(None, normal(5, seed=1))]
    combined = combined_effect(effects, [2.0, 1.0], METHODS["linear"], OPTIONS, None)
    assert combined.weight is None and combined.noise == 0
    assert combined.bias is not None
    np.testing.assert_allclose(combined.bias, 2 * normal(5) + normal(5, seed=1), rtol=1e-12)
