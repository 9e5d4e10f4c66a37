"""Circulant blocks large enough for Fourier transforms to be cheaper."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix.operators import Circulant, backends
from jaxmix.operators import circulant as module

from .kinds import close

pytestmark = pytest.mark.usefixtures("no_compiling")


def circulant(m: int, n: int, b: int) -> Circulant:
    return Circulant(jnp.asarray(np.random.default_rng(b).normal(size=(m, n, b))))


@pytest.mark.parametrize("b", [60, 61], ids=["even", "odd"])
def test_large_blocks_use_transforms(b: int) -> None:
    """Products use the FFT, equal the dense product, and make no dense matrix."""
    with jax.enable_x64(True):
        op, x = circulant(2, 3, b), jnp.asarray(np.random.default_rng(0).normal(size=(3 * b, 40)))
        close(op @ x, np.asarray(op.dense()) @ np.asarray(x))
        y = x[: 2 * b]
        close(op.T @ y, np.asarray(op.dense()).T @ np.asarray(y))
        jaxpr = jax.make_jaxpr(lambda o, v: o @ v)(op, x)
        assert "fft" in str(jaxpr)
        assert all(v.aval.size < op.dense().size for e in jaxpr.eqns for v in e.outvars)
        assert op.matmul_flops(40) < 2 * op.dense().size * 40
        small = circulant(2, 3, 2)
        assert "fft" not in str(jax.make_jaxpr(lambda o, v: o @ v)(small, x[:6]))


def test_16_bits_are_computed_in_float32() -> None:
    op = circulant(1, 2, 64)
    narrow = Circulant(op.kernels.astype(jnp.bfloat16))
    x = jnp.ones((128, 40), jnp.bfloat16)
    product = narrow @ x
    assert product.dtype == jnp.bfloat16
    exact = np.asarray(narrow.kernels, np.float32).sum()
    np.testing.assert_allclose(np.asarray(product, np.float32), exact, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("b", [60, 61], ids=["even", "odd"])
def test_waves_equal_transforms(b: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The TPU's form, in both precisions, with its gradient."""
    op, x = circulant(2, 3, b), jnp.asarray(np.random.default_rng(0).normal(size=(3 * b, 40)))
    truth = np.asarray(op.dense()) @ np.asarray(x)

    def on_tpu(cpu: Any, accelerator: Any, *operands: Any) -> Any:
        return accelerator(backends.TPU, *operands)

    slope = jax.grad(lambda kernels: jnp.sum((Circulant(kernels) @ x) ** 2))
    expected = slope(op.kernels)
    monkeypatch.setattr(module, "by_platform", on_tpu)
    assert "fft" not in str(jax.make_jaxpr(lambda o, v: o @ v)(op, x))
    close(op @ x, truth)
    close(slope(op.kernels), expected)
    narrow = Circulant(op.kernels.astype(np.float32)) @ x.astype(np.float32)
    np.testing.assert_allclose(narrow, truth, atol=1e-6 * np.abs(truth).max())
