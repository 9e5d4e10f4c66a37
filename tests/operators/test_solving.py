"""Large products and systems in the TPU's form, against NumPy's in float64."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix.operators import Sparse, backends, rotations, scattering, solving
from jaxmix.operators.adding import added_in_view, plus
from jaxmix.operators.backends import GPU, TPU, Backend
from jaxmix.operators.rotations import cayley
from jaxmix.operators.scattering import scattered
from jaxmix.operators.solving import inverse, product, solve, solve_by_blocks


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


@pytest.fixture
def tpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chooses the TPU's form."""

    def chosen(cpu: Any, accelerator: Any, *operands: Any) -> Any:
        return accelerator(backends.TPU, *operands)

    for module in (solving, scattering, rotations):
        monkeypatch.setattr(module, "by_platform", chosen)


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


def test_numbers_are_added_in_runs(tpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where positions are repeated and runs are not full, with gradients."""
    for name in ("_RUN", "_SHORT_RUN"):
        monkeypatch.setattr(scattering, name, 8)
    rng = np.random.default_rng(0)
    indices = jnp.asarray(rng.integers(0, 4, (2, 21)), np.int32)
    values, x = jnp.asarray(rng.normal(size=21)), jnp.asarray(rng.normal(size=(4, 5)))

    def total(form: Any) -> Any:
        return lambda x, values: jnp.sum(form(x, Sparse(values, indices, 4, 5)) ** 3)

    def whole(x: Any, sparse: Sparse) -> Any:
        return sparse.added_to(x)

    expected, slopes = jax.value_and_grad(total(whole), (0, 1))(x, values)
    for form in (scattered, in_view, partial(added_in, TPU)):
        assert "scan" in str(jax.make_jaxpr(total(form))(x, values))
        found, own = jax.value_and_grad(total(form), (0, 1))(x, values)
        for a, b in zip((found, *own), (expected, *slopes), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-12)


def added_in(backend: Backend, x: Any, sparse: Sparse) -> Any:
    """Returns the sum as `compose` adds it to a weight."""
    return plus(backend, x, (sparse,))


def in_view(x: Any, sparse: Sparse) -> Any:
    """Returns the sum as `compose` adds it together with Kronecker products."""
    return added_in_view(TPU, x, sparse, 2, x.dtype).reshape(x.shape)


def test_numbers_outside_are_dropped_in_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where they are added at once; negative positions count from the end."""
    monkeypatch.setattr(scattering, "_SHORT_RUN", 2)
    indices = jnp.array([[0, 1, 2, -1, -3, 1, 0], [3, 2, 0, 1, 0, -3, -4]], np.int32)
    sparse = Sparse(jnp.asarray(2.0 ** np.arange(7)), indices, 2, 3)
    x = jnp.zeros((2, 3))
    np.testing.assert_array_equal(added_in(TPU, x, sparse), sparse.added_to(x))


def test_numbers_of_huge_weights_are_added_at_once() -> None:
    """Their array of zeros would be on every device."""
    values, indices = jnp.ones(5000), jnp.zeros((2, 5000), np.int32)
    assert scattering.is_in_runs(TPU, Sparse(values, indices, 2**13, 2**13))
    assert not scattering.is_in_runs(TPU, Sparse(values, indices, 2**13, 2**13 + 1))
    assert not scattering.is_in_runs(GPU, Sparse(values, indices, 2**13, 2**13))
