"""The choice of a form depends on the backend."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmix
from jaxmix import Adapter, Mix
from jaxmix.families import LoHa, LoKr, LoRA
from jaxmix.operators.backends import GPU, TPU, Backend
from jaxmix.unmerged import costs, forms

OUT, IN = 24, 20


def normal(*shape: int, seed: int = 0) -> Any:
    rng = np.random.default_rng([seed, *shape])
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


def update(kind: str, outputs: int = OUT, inputs: int = IN) -> Any:
    match kind:
        case "lora":
            return LoRA(normal(2, inputs), normal(outputs, 2), 0.5)
        case "wide lora":
            return LoRA(normal(64, inputs), normal(outputs, 64), 0.5)
        case "dora":
            return LoRA(normal(2, inputs), normal(outputs, 2), 0.5, 1 + normal(outputs) ** 2)
        case "loha":
            factors = normal(outputs, 2, seed=1), normal(2, inputs, seed=1)
            return LoHa(*factors, *factors, 0.5)  # pyright: ignore[reportCallIssue]
        case _:
            return LoKr((normal(4, 5),), (normal(outputs // 4, inputs // 5),), 0.5)


PARAMS = {"a.weight": normal(OUT, IN)}


def mixed(*kinds: str) -> Mix:
    return jaxmix.mix(*(Adapter({"a": update(kind)}, 0.7, kind) for kind in kinds))


def run(params: Any, x: Any) -> Any:
    return jnp.tanh(x @ params["a.weight"].T)


@pytest.mark.usefixtures("no_compiling")
@pytest.mark.one_of(2)
@pytest.mark.parametrize("tokens", [1, 64, 4096])
@pytest.mark.parametrize("kinds", [("wide lora", "loha", "lokr"), ("lokr", "dora"), ("lokr",)])
def test_all_forms_match_composed_weights(
    kinds: tuple[str, ...], tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = normal(tokens, IN)
    expected = run(jaxmix.compose(PARAMS, mixed(*kinds)), x)
    leaves = jaxmix.attach(PARAMS, mixed(*kinds))
    for how in ("auto", "factored", "dense"):
        np.testing.assert_allclose(jaxmix.factored(run, how)(leaves, x), expected, atol=2e-5)
    monkeypatch.setattr(
        costs, "on_platform", lambda x, cpu, accelerator, *args: accelerator(TPU, *args)
    )
    np.testing.assert_allclose(jaxmix.factored(run)(leaves, x), expected, atol=2e-5)


def chosen_forms(
    kinds: tuple[str, ...], tokens: int, monkeypatch: pytest.MonkeyPatch, backend: Backend = TPU
) -> list[str]:
    """Returns the forms chosen for a CPU and for another backend, for a weight (4096, 4000)."""
    names: list[str] = []

    def record(x: Any, cpu: Any, accelerator: Any, *args: Any) -> Any:
        names.extend(
            [cpu.__name__, costs.cheapest(accelerator.args[0], costs.of_backend(backend)).__name__]
        )
        return cpu(*args)

    monkeypatch.setattr(costs, "on_platform", record)
    shape = (4096, 4000)
    adapters = [
        Adapter({"a": jax.eval_shape(lambda k=k: update(k, *shape))}, 1.0, k) for k in kinds
    ]
    params = {"a.weight": jax.ShapeDtypeStruct(shape, jnp.bfloat16)}
    x = jax.ShapeDtypeStruct((tokens, shape[1]), jnp.bfloat16)
    jax.eval_shape(
        lambda p, a, x: jaxmix.factored(run)(jaxmix.attach(p, a), x), params, adapters, x
    )
    return names


def test_accelerators_take_thin_operators_where_a_cpu_takes_the_dense_weight(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On an accelerator, reading a number costs as much as some thousand operations."""
    assert chosen_forms(("loha",), 8192, monkeypatch) == ["by_dense", "by_operators"]
    assert chosen_forms(("lora",), 128, monkeypatch) == []  # the choice is the same on both
    assert chosen_forms(("wide lora", "lokr"), 2048, monkeypatch, GPU)[1] == "by_parts"
    assert chosen_forms(("wide lora", "lokr"), 2048, monkeypatch)[1] == "by_view"
    assert chosen_forms(("wide lora", "lokr"), 8, monkeypatch) == []


@pytest.mark.parametrize(
    "backend, tokens, way, reason",
    [
        (TPU, 2048, "view", "Kronecker products cost less while the weight is read"),
        (GPU, 2048, "partly dense", "the operators of low rank cost less than a pass"),
        (None, 8192, "dense", "for this many tokens the dense weight costs less"),
        (TPU, 8, "factored", "the operators cost less than a pass over the weight"),
    ],
)
def test_explain_names_the_form_that_runs(
    backend: Backend | None, tokens: int, way: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform_costs = costs.CPU if backend is None else costs.of_backend(backend)
    monkeypatch.setattr(forms, "on_this_platform", lambda: platform_costs)
    kinds = ("wide lora", "lokr") if backend else ("loha",)
    shape = (4096, 4000)
    adapters = [
        Adapter({"a": jax.eval_shape(lambda k=k: update(k, *shape))}, 1.0, k) for k in kinds
    ]
    params = {"a.weight": jax.ShapeDtypeStruct(shape, jnp.bfloat16)}
    leaves = jax.eval_shape(jaxmix.attach, params, adapters)
    (row,) = jaxmix.explain(leaves, tokens).ways
    assert row.way == way and reason in row.why
