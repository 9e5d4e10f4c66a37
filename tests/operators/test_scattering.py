"""Many single numbers added to a matrix in the TPU's form, against the sum at once."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix.operators import Sparse, scattering
from jaxmix.operators.adding import added_in_view, plus
from jaxmix.operators.backends import GPU, TPU, Backend
from jaxmix.operators.scattering import scattered


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
