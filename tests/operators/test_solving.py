"""Large products and systems in the TPU's form, against NumPy's in float64."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix.operators.solving import product, solve, solve_by_blocks


def system(n: int, m: int) -> tuple[Any, Any]:
    """A system that needs pivots."""
    rng = np.random.default_rng([n, m])
    a = rng.normal(size=(n, n))
    a[0, 0] = 0
    return a, rng.normal(size=(n, m))


@pytest.mark.parametrize("n, m", [(5, 3), (128, 2), (300, 70)])
def test_blocks_are_as_accurate_as_lapack(n: int, m: int) -> None:
    a, b = system(n, m)
    truth = np.linalg.solve(a, b)

    def error(x: Any) -> float:
        return float(np.abs(np.asarray(x) - truth).max() / np.abs(truth).max())

    narrow = jnp.asarray(a, np.float32), jnp.asarray(b, np.float32)
    assert error(jax.jit(solve_by_blocks)(*narrow)) < 4 * error(jnp.linalg.solve(*narrow)) + 1e-6
    with jax.enable_x64(True):
        wide = jnp.asarray(a), jnp.asarray(b)
        assert error(jax.jit(solve_by_blocks)(*wide)) < 1e-10
        assert error(jax.jit(solve)(*wide)) < 1e-10


def test_singular_systems_have_no_finite_solution() -> None:
    out = solve_by_blocks(jnp.ones((3, 3)), jnp.ones((3, 1)).at[0].set(2))
    assert not np.isfinite(out).all()


@pytest.mark.parametrize("n, k, m", [(3, 5, 2), (256, 512, 8), (300, 1100, 70), (600, 40, 700)])
def test_product_in_loops_is_as_accurate(n: int, k: int, m: int, tpu: None) -> None:
    """Its error is that of float32, also where the blocks do not divide the sizes."""
    rng = np.random.default_rng([n, k, m])
    a, b = rng.normal(size=(n, k)), rng.normal(size=(k, m))
    found = jax.jit(product)(jnp.asarray(a, np.float32), jnp.asarray(b, np.float32))
    assert found.shape == (n, m) and found.dtype == np.float32
    assert np.abs(np.asarray(found) - a @ b).max() < 1e-6 * k
    with jax.enable_x64(True):
        wide = jax.jit(product)(jnp.asarray(a), jnp.asarray(b))
        np.testing.assert_allclose(wide, a @ b, atol=1e-11)


def test_product_in_loops_has_a_gradient(tpu: None) -> None:
    """Of both operands, so that coefficients can be trained."""
    rng = np.random.default_rng(0)
    a, b = (jnp.asarray(rng.normal(size=(3, 3)), np.float32) for _ in range(2))
    slopes = jax.grad(lambda a, b: jnp.sum(product(a, b) * b), (0, 1))(a, b)
    expected = jax.grad(lambda a, b: jnp.sum((a @ b) * b), (0, 1))(a, b)
    for found, truth in zip(slopes, expected, strict=True):
        np.testing.assert_allclose(found, truth, atol=1e-5)
