"""Each method's formula equals NumPy's entry by entry, on tensors of any shape."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from jaxmix.combining import formulas
from jaxmix.combining.formulas import Options

from . import naive

# Few values, so that there are ties, zeros and equals; few shapes, since each is compiled.
STACKS = arrays.arrays(
    np.float64,
    st.sampled_from([(1, 3, 2), (2, 3, 4), (2, 5), (3, 4, 2)]),
    elements=st.integers(-3, 3).map(float),
)
DENSITIES = st.sampled_from([0.2, 0.5, 0.75, 1.0])
MAJORITIES = st.sampled_from(["total", "frequency"])


def run(formula: Any, stack: np.ndarray, weights: Any, key: Any = None, **options: Any) -> Any:
    """Calls the formula as `combine` does: with the weights' signs moved into the stack."""
    weights = np.asarray(weights, np.float64)
    signed = np.where(weights < 0, -1.0, 1.0).reshape(-1, *(1,) * (stack.ndim - 1)) * stack
    return np.asarray(
        formula(jnp.asarray(signed), jnp.asarray(np.abs(weights)), Options(**options), key)
    )


def close(found: Any, truth: Any) -> None:
    np.testing.assert_allclose(found, truth, rtol=1e-12, atol=1e-12)


def distinct(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


@given(data=st.data(), stack=STACKS, density=DENSITIES, majority=MAJORITIES)
def test_ties_and_pruning(
    data: st.DataObject, stack: np.ndarray, density: float, majority: Any
) -> None:
    """The results match with equal entries, zeros, tied votes, and weights of any sign."""
    weights = data.draw(st.lists(st.sampled_from([1.0, 0.5, -2.0]), min_size=3, max_size=3))
    weights = weights[: len(stack)]
    found = run(formulas.ties, stack, weights, density=density, majority_sign=majority)
    close(found, naive.ties(stack, weights, density, majority))
    found = run(formulas.magnitude_prune, stack, weights, density=density)
    close(found, naive.magnitude_prune(stack, weights, density))
    close(run(formulas.linear, stack, weights), naive.linear(stack, weights))


def test_majority_decides_the_sign() -> None:
    """By total, one large entry beats two small ones; by frequency it loses."""
    stack = np.array([[5.0, 1.0], [-1.0, 2.0], [-2.0, 3.0]])
    found = {
        majority: run(formulas.ties, stack, [1.0, 1.0, 1.0], majority_sign=majority).tolist()
        for majority in ("total", "frequency")
    }
    assert found == {"total": [5.0, 2.0], "frequency": [-1.5, 2.0]}


@given(stack=STACKS, density=DENSITIES, outliers=st.sampled_from([0.0, 0.1, 0.3, 0.9]))
def test_breadcrumbs(stack: np.ndarray, density: float, outliers: float) -> None:
    weights = [0.5, -1.0, 2.0][: len(stack)]
    found = run(formulas.breadcrumbs, stack, weights, density=density, outliers=outliers)
    close(found, naive.breadcrumbs(stack, weights, density, outliers))


def test_breadcrumbs_drop_the_largest() -> None:
    stack = np.array([[5.0, -4.0, 3.0, -2.0, 1.0, 0.5, 0.25, 0.125, 0.1, 0.05]])
    found = run(formulas.breadcrumbs, stack, [1.0], density=0.3, outliers=0.2)
    assert found.tolist() == [0, 0, 3, -2, 1, 0, 0, 0, 0, 0]
    # No outliers: mergekit's slice comes out empty there.
    found = run(formulas.breadcrumbs, stack, [1.0], density=0.3, outliers=0.0)
    assert found.tolist() == [5, -4, 3, 0, 0, 0, 0, 0, 0, 0]


@given(stack=STACKS.filter(lambda stack: len(stack) < 3), density=DENSITIES)
def test_sce(stack: np.ndarray, density: float) -> None:
    """Only stacks of two, since rounding orders equal variances of three."""
    ones = np.ones(len(stack))
    close(run(formulas.sce, stack, ones, density=density), naive.sce(stack, density))
    three = distinct(0, 3, 4, 5)
    close(run(formulas.sce, three, [1, 1, 1], density=density), naive.sce(three, density))


@given(stack=STACKS.filter(lambda stack: len(stack) > 1))
def test_model_stock(stack: np.ndarray) -> None:
    ones = np.ones(len(stack))
    close(run(formulas.model_stock, stack, ones), naive.model_stock(stack))


def test_model_stock_by_what_they_agree_on() -> None:
    one, two = np.array([3.0, 0.0]), np.array([0.0, 3.0])
    for stack, truth in (
        ([one, one, one], one),
        ([one, two], 0 * one),
        ([one, -one], 0 * one),
        ([one, one + two], 2 * np.sqrt(0.5) / (1 + np.sqrt(0.5)) * (one + two / 2)),
    ):
        close(run(formulas.model_stock, np.stack(stack), np.ones(len(stack))), truth)


@given(stack=STACKS.filter(lambda s: len(s) == 2), t=st.sampled_from([0.0, 0.2, 0.5, 1.0]))
def test_slerp(stack: np.ndarray, t: float) -> None:
    weights = [3 * (1 - t), 3 * t]
    close(run(formulas.slerp, stack, weights), naive.slerp(stack, weights))


def test_slerp_keeps_the_length() -> None:
    one, two = distinct(0, 2, 5)
    two *= np.linalg.norm(one) / np.linalg.norm(two)
    for t in (0.0, 0.3, 1.0):
        found = run(formulas.slerp, np.stack([one, two]), [1 - t, t])
        np.testing.assert_allclose(np.linalg.norm(found), np.linalg.norm(one), rtol=1e-12)
    close(run(formulas.slerp, np.stack([one, two]), [1.0, 0.0]), one)
    # Parallel and nearly parallel directions: a straight line, and no division by zero.
    close(run(formulas.slerp, np.stack([one, 3 * one]), [1.0, 1.0]), 2 * one)
    close(run(formulas.slerp, np.stack([one, -one]), [1.0, 1.0]), 0 * one)


@pytest.mark.parametrize("density", [0.25, 0.6])
def test_dare_keeps_the_mean(density: float) -> None:
    """Each entry is zero or divided by the density; each adapter has its own mask."""
    stack = 1 + np.abs(distinct(1, 2, 30, 40))
    keys = jax.random.split(jax.random.key(0), 200)
    mean = np.zeros((30, 40))
    for key in keys:
        mean += run(formulas.dare_linear, stack, [1.0, -0.5], key, density=density) / 200
    truth = stack[0] - 0.5 * stack[1]
    deviation = np.sqrt((stack[0] ** 2 + 0.25 * stack[1] ** 2) * (1 / density - 1) / 200)
    assert np.abs((mean - truth) / deviation).max() < 5
    one = run(formulas.dare_linear, stack, [1.0, 0.0], keys[0], density=density)
    two = run(formulas.dare_linear, stack, [0.0, 1.0], keys[0], density=density)
    for found, tensor in ((one, stack[0]), (two, stack[1])):
        kept = found != 0
        close(found[kept], tensor[kept] / density)
        assert abs(kept.mean() - density) < 0.07
    assert ((one != 0) != (two != 0)).any()


def test_dare_ties_elects_among_kept_entries() -> None:
    """DARE-TIES equals the election among the entries that DARE keeps."""
    stack, key = distinct(2, 3, 8, 9), jax.random.key(3)
    weights = [0.5, 1.5, -1.0]
    kept = [run(formulas.dare_linear, stack, np.eye(3)[i], key, density=0.7) for i in range(3)]
    found = run(formulas.dare_ties, stack, weights, key, density=0.7)
    close(found, naive.elect(kept, weights, "total"))


def test_density_one_keeps_everything() -> None:
    """At density 1 the result is the weighted sum."""
    stack, weights = distinct(4, 3, 5, 6), [1.0, -2.0, 0.5]
    for formula in (formulas.magnitude_prune, formulas.dare_linear, formulas.breadcrumbs):
        close(run(formula, stack, weights, density=1.0), naive.linear(stack, weights))
