"""The forms of products that programs for accelerators take, run on a CPU."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmix
from jaxmix import Adapter
from jaxmix.families import OFT, LoKr, LoRA
from jaxmix.operators import BlockDiagonal, Product
from jaxmix.operators.backends import GPU, TPU, Backend
from jaxmix.unmerged import costs, in_view, products

OUT, IN = 48, 256


def normal(*shape: int, seed: int = 0, std: float = 1.0) -> Any:
    rng = np.random.default_rng([seed, *shape])
    return jnp.asarray(std * rng.normal(size=shape), jnp.float32)


PARAMS = {"a.weight": normal(OUT, IN)}
LORA = Adapter({"a": LoRA(normal(2, IN), normal(OUT, 2), 0.5)}, 0.7, "lora")
LOKR = Adapter({"a": LoKr((normal(3, 4),), (normal(16, 64),), 0.5)}, 0.7, "lokr")
OFTS = {
    "blocks of 32": OFT(normal(8, 32 * 31 // 2, std=0.1), terms=5),
    "one block for all": OFT(normal(1, 28, std=0.1), terms=5),
    "a block of 256": OFT(normal(1, 256 * 255 // 2, std=0.01), terms=5),
    "blocks that do not fit": OFT(normal(1, 1, std=0.1)),
}
Run = Callable[[Any, Any], Any]
RUNS: dict[str, Run] = {
    "x Wᵀ": lambda w, x: x @ w.T,
    "W xᵀ": lambda w, x: w @ x.T,
    "x Wᵀ, a batch": lambda w, x: x[None] @ w.T,
    "a vector": lambda w, x: w @ x[0],
    "x W": lambda w, x: (2 * x)[:, :OUT] @ w,
    "Wᵀ xᵀ": lambda w, x: w.T @ x[:, :OUT].T,
}


@pytest.fixture(params=[TPU, GPU], ids=["TPU", "GPU"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Backend:
    """Runs the forms of a backend on the CPU, and prefers views where they exist."""

    def run(x: Any, cpu: Any, accelerator: Any, *operands: Any) -> Any:
        return accelerator(request.param, *operands)

    for module in (costs, products):
        monkeypatch.setattr(module, "on_platform", run)
    monkeypatch.setattr(costs, "_ON_TPU", replace(costs.of_backend(TPU), moved=10**9, viewed=0))
    return request.param


def check(adapters: list[Adapter], fn: Run, x: Any) -> None:
    """Asserts that values and gradients match those of the composed weights."""

    def loss(run: Any, leaves: Any) -> Any:
        return jnp.sin(run(leaves, x)).sum()

    def run(params: Any, x: Any) -> Any:
        return fn(params["a.weight"], x)

    def by_composing(adapters: Any) -> Any:
        return loss(run, jaxmix.compose(PARAMS, adapters))

    def by_operators(adapters: Any) -> Any:
        return loss(jaxmix.factored(run), jaxmix.attach(PARAMS, adapters))

    expected = run(jaxmix.compose(PARAMS, adapters), x)
    actual = jaxmix.factored(run)(jaxmix.attach(PARAMS, adapters), x)
    np.testing.assert_allclose(actual, expected, rtol=2e-4, atol=2e-4)
    expected_gradients, actual_gradients = (
        jax.tree.leaves(jax.grad(f)(adapters)) for f in (by_composing, by_operators)
    )
    for actual_gradient, expected_gradient in zip(
        actual_gradients, expected_gradients, strict=True
    ):
        np.testing.assert_allclose(actual_gradient, expected_gradient, rtol=2e-2, atol=2e-2)


@pytest.mark.one_of(2)
@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("adapters", [[LOKR], [LORA, LOKR]], ids=["LoKr", "LoRA, LoKr"])
def test_kronecker_products_use_a_view_on_tpu(
    adapters: list[Adapter], name: str, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int | None] = []

    def recorded(x: Any, weight: Any, **params: Any) -> Any:
        calls.append(in_view.rows_of_view(weight))
        return in_view.product_in_view(x, weight, **params)

    monkeypatch.setattr(products, "product_in_view", recorded)
    check(adapters, RUNS[name], normal(3, IN, seed=1))
    assert set(calls) == ({16} if backend is TPU else set())


@pytest.mark.usefixtures("no_compiling")
@pytest.mark.one_of(3)
@pytest.mark.parametrize(
    "name, fn, tokens",
    [
        *((name, "x Wᵀ", 3) for name in OFTS),
        *(("blocks of 32", fn, 3) for fn in ("W xᵀ", "x Wᵀ, a batch", "a vector")),
        ("blocks of 32", "x Wᵀ", 1),
        ("blocks of 32", "x Wᵀ", 20),
    ],
)
def test_rotations_of_tokens_match_composed_weights(
    name: str, fn: str, tokens: int, backend: Backend
) -> None:
    oft = Adapter({"a": OFTS[name]}, 0.7, "oft")
    check([oft, LORA], RUNS[fn], normal(tokens, IN, seed=1))


@pytest.mark.parametrize("backend", [TPU, GPU])
def test_low_precision_tokens_are_rotated_in_their_dtype(backend: Backend) -> None:
    blocks = BlockDiagonal(normal(8, 32, 32), 1)
    squared, x = Product(blocks, blocks), normal(3, IN, seed=1)
    actual = backend.rotated(x, squared, jnp.bfloat16)
    assert actual.dtype == jnp.bfloat16
    expected = np.asarray(x) @ np.asarray(blocks.dense()) @ np.asarray(blocks.dense())
    np.testing.assert_allclose(actual.astype(jnp.float32), expected, rtol=0.05, atol=2)
