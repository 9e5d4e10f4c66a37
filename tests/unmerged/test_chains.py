"""Law 3 for factored leaves: chains of every family give the outputs of the composed weights."""

from collections.abc import Sequence
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmix
from jaxmix.unmerged.running import quietly_factored

from ..laws.chains import ALL, CHAINS, FLAT, chain
from ..laws.draws import FAMILIES, KINDS, Module, tree
from ..laws.truth import fold_tree

LINEAR = Module("linear", (6, 8), True)


def run(params: Any, x: Any) -> Any:
    """Runs a layer of the kind that the weight's number of axes implies."""
    weight, bias = jnp.asarray(params["site.weight"]), params.get("site.bias")
    if isinstance(x, dict):
        return jnp.take(weight, x["tokens"], axis=0), x["hidden"] @ weight.T
    if weight.ndim == 2:
        y = x @ weight.T
        return y if bias is None else y + bias[None]
    y = jax.lax.conv_general_dilated(x, weight, (1,) * (weight.ndim - 2), "SAME")
    return y if bias is None else y + bias.reshape(1, -1, *[1] * (weight.ndim - 2))


def inputs(kind: str, module: Module) -> Any:
    """Returns inputs for such a layer."""
    rng = np.random.default_rng(5)
    if kind == "embedding":
        rows, size = module.shape
        return {"tokens": rng.integers(0, rows, (2, 3)), "hidden": rng.normal(size=(3, size))}
    if module.kind == "conv":
        return rng.normal(size=(2, module.shape[1], *[5] * len(module.kernel)))
    return rng.normal(size=(3, module.shape[1]))


def mismatched_chains(chains: Sequence[Sequence[str]], kind: str, module: Module) -> list[str]:
    """Returns the chains whose outputs differ from those of the fold's weights.

    Each chain has its own layer. All layers are one compiled function, which compiles faster than
    a function per layer.
    """
    layers = {f"{i} {' -> '.join(kinds)}": kinds for i, kinds in enumerate(chains)}
    params, x = tree(dict.fromkeys(layers, module), 1), inputs(kind, module)
    updates_by_adapter: list[dict[str, Any]] = [{} for _ in range(max(map(len, chains)))]
    for seed, (layer, kinds) in enumerate(layers.items()):
        for updates, adapter in zip(updates_by_adapter, chain(kinds, module, seed), strict=False):
            updates[layer] = adapter.updates["site"]
    adapters = [
        jaxmix.Adapter(updates, 0.5 + 0.4 * i, f"{i}")
        for i, updates in enumerate(updates_by_adapter)
    ]

    def outputs(params: Any, x: Any) -> dict[str, Any]:
        parts = ("weight", "bias")
        by_layer = {
            name: {f"site.{p}": params.get(f"{name}.{p}") for p in parts} for name in layers
        }
        return {name: run(layer, x) for name, layer in by_layer.items()}

    @jax.jit
    def unmerged(params: Any, adapters: Any, x: Any) -> dict[str, Any]:
        return quietly_factored(outputs)(jaxmix.attach(params, adapters), x)

    actual, expected = unmerged(params, adapters, x), outputs(fold_tree(params, adapters), x)
    return [
        name
        for name in layers
        for actual_output, expected_output in zip(
            jax.tree.leaves(actual[name]), jax.tree.leaves(expected[name]), strict=True
        )
        if not np.abs(np.asarray(actual_output) - expected_output).max()
        < 1e-10 * max(np.abs(expected_output).max(), 1.0)
    ]


def thorough(*values: Any) -> list[Any]:
    """Marks parameter values that only `make test-all` runs."""
    return [pytest.param(value, marks=pytest.mark.thorough) for value in values]


@pytest.mark.parametrize("length", [1, 2, *thorough(3)])
def test_every_chain_of_six_families_matches(length: int) -> None:
    """All 6ⁿ ordered chains."""
    chains = list(product(FAMILIES, repeat=length))
    with jax.enable_x64(True):
        for start in range(0, len(chains), 72):
            assert mismatched_chains(chains[start : start + 72], "linear", LINEAR) == []


@pytest.mark.thorough
@pytest.mark.parametrize("part", range(4))
def test_every_pair_of_families_matches(part: int) -> None:
    """In both orders, within chains of six."""
    with jax.enable_x64(True):
        assert mismatched_chains(CHAINS[part::4], "linear", LINEAR) == []


@pytest.mark.parametrize("kind", ["conv1d", *thorough("conv2d", "conv3d"), "embedding"])
def test_convolutions_and_embeddings_match(kind: str) -> None:
    """Every family alone, and before and after a LoRA; with experts for convolutions."""
    module = KINDS[kind]
    names = tuple(ALL) if kind == "conv1d" else FLAT
    chains = [(name,) for name in names] + [("LoRA", name, "LoHa") for name in FLAT[::3]]
    with jax.enable_x64(True):
        assert mismatched_chains(chains, kind, module) == []
