"""Rotations from skew-symmetric matrices, against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix.operators.rotations import (
    blocks_side_by_side,
    cayley,
    cayley_neumann,
    clip_norm,
    skew_symmetric,
    stacked_blocks,
    terms_misfit,
)
from jaxmix.operators.solving import inverse

from ..uncompiled import uncompiled


def test_small_rotations_are_inverted_in_a_loop(tpu: None) -> None:
    """In the TPU's form, also far from the identity, with gradients; NaN where Q overflows."""
    q = np.random.default_rng(0).normal(size=(20, 5, 5)) * np.linspace(0, 9, 20)[:, None, None]
    q -= q.transpose(0, 2, 1)
    eye = np.eye(5)
    found = cayley(jnp.asarray(q))
    np.testing.assert_allclose(found, np.linalg.solve(eye + q, eye - q), atol=1e-12)
    assert "cholesky" not in str(jax.make_jaxpr(cayley)(q))
    assert "cholesky" in str(jax.make_jaxpr(cayley)(np.zeros((20, 17, 17))))
    assert np.isnan(cayley(jnp.asarray(q).at[3, 0, 1].set(np.inf)))[3].all()
    matrices = jnp.asarray(eye + q)
    slopes = jax.grad(lambda a: jnp.sum(inverse(a) ** 3))(matrices)
    expected = jax.grad(lambda a: jnp.sum(jnp.linalg.inv(a) ** 3))(matrices)
    np.testing.assert_allclose(slopes, expected, atol=1e-12)


def powers(q: np.ndarray, factors: list[float]) -> np.ndarray:
    """``Σ cᵢ Qⁱ``, one power after the other."""
    return sum(c * np.linalg.matrix_power(q, i) for i, c in enumerate(factors))  # pyright: ignore


def skew(count: int, size: int) -> np.ndarray:
    """Random skew-symmetric matrices."""
    q = np.random.default_rng(size).normal(size=(count, size, size))
    return q - q.transpose(0, 2, 1)


def test_upper_triangle_is_filled_row_by_row() -> None:
    """One matrix per row of numbers; a block of one number is zero."""
    numbers = jnp.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    expected = [
        [[0, 1, 2], [-1, 0, 3], [-2, -3, 0]],
        [[0, 4, 5], [-4, 0, 6], [-5, -6, 0]],
    ]
    np.testing.assert_array_equal(skew_symmetric(numbers), expected)
    np.testing.assert_array_equal(skew_symmetric(jnp.ones((2, 0))), np.zeros((2, 1, 1)))


def test_only_norms_above_the_bound_are_clipped() -> None:
    """Each matrix by its own norm; one at the bound, or at zero, keeps every bit."""
    q = jnp.asarray([[[3.0, 0.0], [0.0, 4.0]], [[0.0, 6.0], [8.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    clipped = clip_norm(q, 5.0)
    np.testing.assert_array_equal(clipped[::2], q[::2])
    np.testing.assert_allclose(clipped[1], q[1] / 2, rtol=1e-15)
    slope = jax.grad(lambda q: jnp.sum(clip_norm(q, 5.0)))(q)
    np.testing.assert_array_equal(slope[2], np.ones((2, 2)))


@pytest.mark.parametrize("size", [1, 2, 5])
def test_cayley_is_the_transform_and_inverts_with_the_sign(size: int) -> None:
    """A rotation, whose transpose is that of −Q."""
    q, eye = skew(3, size), np.eye(size)
    found = cayley(jnp.asarray(q))
    np.testing.assert_allclose(found, np.linalg.solve(eye + q, eye - q), atol=1e-12)
    np.testing.assert_allclose(cayley(jnp.asarray(-q)), found.transpose(0, 2, 1), atol=1e-12)


def test_overflowing_rotations_are_nan() -> None:
    """The other rotations are not; bfloat16 stays bfloat16."""
    q = skew(2, 3) * np.array([1.0, 1e200])[:, None, None]
    found = cayley(jnp.asarray(q))
    assert np.isfinite(found[0]).all() and np.isnan(found[1]).all()
    assert cayley(jnp.asarray(skew(1, 2), jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.parametrize("terms", range(1, 9))
def test_series_has_the_factors_of_peft(terms: int) -> None:
    """Three terms are four, and before peft 0.18 the last power has the factor 2 as well."""
    q = 0.3 * skew(1, 4)
    count = 4 if terms == 3 else terms
    own = [1.0, *[2.0] * (count - 2), 1.0] if count > 2 else [1.0, 2.0][:count]
    for factors, ends_twice in ((own, False), ([1.0, *[2.0] * (terms - 1)], True)):
        with uncompiled():
            found = cayley_neumann(jnp.asarray(q), terms, ends_twice)
        np.testing.assert_allclose(found[0], powers(q[0], factors), atol=1e-12)


def test_blocks_side_by_side_are_stacked_again() -> None:
    """Bit for bit, also for a single block and for blocks of one number."""
    for shape in ((3, 2, 2), (1, 4, 4), (5, 1, 1)):
        blocks = jnp.asarray(np.random.default_rng(0).normal(size=shape))
        flat = blocks_side_by_side(blocks)
        assert flat.shape == (shape[1], shape[0] * shape[1])
        np.testing.assert_array_equal(flat[:, : shape[1]], blocks[0].T)
        np.testing.assert_array_equal(stacked_blocks(flat), blocks)


def test_number_of_terms_is_checked() -> None:
    """A bool is no number of terms."""
    assert [terms_misfit(terms) for terms in (None, 1, 1000)] == [None] * 3
    for terms in (0, -1, 1001, True, 2.0, "5"):
        assert terms_misfit(terms) == (f"terms is {terms!r}, expected an integer from 1 to 1,000")
