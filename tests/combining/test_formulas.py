"""Each method's formula, against NumPy's entry by entry, on tensors of any shape."""

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

# Few values, so that zeros and equal entries occur; few shapes, because each is compiled.
STACKS = arrays.arrays(
    np.float64,
    st.sampled_from([(1, 3, 2), (2, 3, 4), (2, 5), (3, 4, 2)]),
    elements=st.integers(-3, 3).map(float),
)
DENSITIES = st.sampled_from([0.2, 0.5, 0.75, 1.0])
MAJORITIES = st.sampled_from(["total", "frequency"])


def run(formula: Any, stack: np.ndarray, weights: Any, key: Any = None, **options: Any) -> Any:
    """Calls the formula as `combine` does, with signs moved from the weights into the stack."""
    weights = np.asarray(weights, np.float64)
    signed = np.where(weights < 0, -1.0, 1.0).reshape(-1, *(1,) * (stack.ndim - 1)) * stack
    return np.asarray(
        formula(jnp.asarray(signed), jnp.asarray(np.abs(weights)), Options(**options), key)
    )


def close(actual: Any, expected: Any) -> None:
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-12)


def distinct(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


@given(data=st.data(), stack=STACKS, density=DENSITIES, majority=MAJORITIES)
def test_ties_and_pruning(
    data: st.DataObject, stack: np.ndarray, density: float, majority: Any
) -> None:
    """Includes equal entries, zeros, tied votes, and weights of both signs."""
    weights = data.draw(st.lists(st.sampled_from([1.0, 0.5, -2.0]), min_size=3, max_size=3))
    weights = weights[: len(stack)]
    actual = run(formulas.ties, stack, weights, density=density, majority_sign=majority)
    close(actual, naive.ties(stack, weights, density, majority))
    actual = run(formulas.magnitude_prune, stack, weights, density=density)
    close(actual, naive.magnitude_prune(stack, weights, density))
    close(run(formulas.linear, stack, weights), naive.linear(stack, weights))


def test_total_and_frequency_elect_differently() -> None:
    """One large entry against two small ones."""
    stack = np.array([[5.0, 1.0], [-1.0, 2.0], [-2.0, 3.0]])
    elected = {
        majority: run(formulas.ties, stack, [1.0, 1.0, 1.0], majority_sign=majority).tolist()
        for majority in ("total", "frequency")
    }
    assert elected == {"total": [5.0, 2.0], "frequency": [-1.5, 2.0]}


@given(stack=STACKS, density=DENSITIES, outliers=st.sampled_from([0.0, 0.1, 0.3, 0.9]))
def test_breadcrumbs(stack: np.ndarray, density: float, outliers: float) -> None:
    weights = [0.5, -1.0, 2.0][: len(stack)]
    actual = run(formulas.breadcrumbs, stack, weights, density=density, outliers=outliers)
    close(actual, naive.breadcrumbs(stack, weights, density, outliers))


def test_breadcrumbs_drop_the_largest() -> None:
    stack = np.array([[5.0, -4.0, 3.0, -2.0, 1.0, 0.5, 0.25, 0.125, 0.1, 0.05]])
    actual = run(formulas.breadcrumbs, stack, [1.0], density=0.3, outliers=0.2)
    assert actual.tolist() == [0, 0, 3, -2, 1, 0, 0, 0, 0, 0]
    # No outliers: mergekit's slice comes out empty there.
    actual = run(formulas.breadcrumbs, stack, [1.0], density=0.3, outliers=0.0)
    assert actual.tolist() == [5, -4, 3, 0, 0, 0, 0, 0, 0, 0]


@given(stack=STACKS.filter(lambda stack: len(stack) < 3), density=DENSITIES)
def test_sce(stack: np.ndarray, density: float) -> None:
    """Three tensors have distinct entries: rounding may order equal variances differently."""
    ones = np.ones(len(stack))
    close(run(formulas.sce, stack, ones, density=density), naive.sce(stack, density))
    three = distinct(0, 3, 4, 5)
    close(run(formulas.sce, three, [1, 1, 1], density=density), naive.sce(three, density))


@given(stack=STACKS.filter(lambda stack: len(stack) > 1))
def test_model_stock(stack: np.ndarray) -> None:
    ones = np.ones(len(stack))
    close(run(formulas.model_stock, stack, ones), naive.model_stock(stack))


def test_model_stock_depends_on_the_angles() -> None:
    x, y = np.array([3.0, 0.0]), np.array([0.0, 3.0])
    for stack, expected in (
        ([x, x, x], x),
        ([x, y], 0 * x),
        ([x, -x], 0 * x),
        ([x, x + y], 2 * np.sqrt(0.5) / (1 + np.sqrt(0.5)) * (x + y / 2)),
    ):
        close(run(formulas.model_stock, np.stack(stack), np.ones(len(stack))), expected)


@given(stack=STACKS.filter(lambda s: len(s) == 2), t=st.sampled_from([0.0, 0.2, 0.5, 1.0]))
def test_slerp(stack: np.ndarray, t: float) -> None:
    weights = [3 * (1 - t), 3 * t]
    close(run(formulas.slerp, stack, weights), naive.slerp(stack, weights))


def test_slerp_keeps_the_length() -> None:
    x, y = distinct(0, 2, 5)
    y *= np.linalg.norm(x) / np.linalg.norm(y)
    for t in (0.0, 0.3, 1.0):
        between = run(formulas.slerp, np.stack([x, y]), [1 - t, t])
        np.testing.assert_allclose(np.linalg.norm(between), np.linalg.norm(x), rtol=1e-12)
    close(run(formulas.slerp, np.stack([x, y]), [1.0, 0.0]), x)
    # Parallel directions are interpolated linearly, without a division by zero.
    close(run(formulas.slerp, np.stack([x, 3 * x]), [1.0, 1.0]), 2 * x)
    close(run(formulas.slerp, np.stack([x, -x]), [1.0, 1.0]), 0 * x)


@pytest.mark.parametrize("density", [0.25, 0.6])
def test_dare_keeps_the_mean(density: float) -> None:
    """Each entry is zero or divided by the density; each adapter has its own mask."""
    stack, draws = 1 + np.abs(distinct(1, 2, 30, 40)), 50
    keys = jax.random.split(jax.random.key(0), draws)
    mean = np.zeros((30, 40))
    for key in keys:
        mean += run(formulas.dare_linear, stack, [1.0, -0.5], key, density=density) / draws
    expected = stack[0] - 0.5 * stack[1]
    deviation = np.sqrt((stack[0] ** 2 + 0.25 * stack[1] ** 2) * (1 / density - 1) / draws)
    assert np.abs((mean - expected) / deviation).max() < 5
    from_first = run(formulas.dare_linear, stack, [1.0, 0.0], keys[0], density=density)
    from_second = run(formulas.dare_linear, stack, [0.0, 1.0], keys[0], density=density)
    for actual, tensor in ((from_first, stack[0]), (from_second, stack[1])):
        kept = actual != 0
        close(actual[kept], tensor[kept] / density)
        assert abs(kept.mean() - density) < 0.07
    assert ((from_first != 0) != (from_second != 0)).any()


def test_dare_ties_elects_among_kept_entries() -> None:
    stack, key = distinct(2, 3, 8, 9), jax.random.key(3)
    weights = [0.5, 1.5, -1.0]
    kept = [run(formulas.dare_linear, stack, np.eye(3)[i], key, density=0.7) for i in range(3)]
    actual = run(formulas.dare_ties, stack, weights, key, density=0.7)
    close(actual, naive.elect(kept, weights, "total"))


def test_density_one_keeps_every_entry() -> None:
    stack, weights = distinct(4, 3, 5, 6), [1.0, -2.0, 0.5]
    for formula in (formulas.magnitude_prune, formulas.dare_linear, formulas.breadcrumbs):
        close(run(formula, stack, weights, density=1.0), naive.linear(stack, weights))
