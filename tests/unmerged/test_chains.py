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
    """A layer of the kind that the weight's number of axes implies."""
    weight, bias = jnp.asarray(params["site.weight"]), params.get("site.bias")
    if isinstance(x, dict):
        return jnp.take(weight, x["tokens"], axis=0), x["hidden"] @ weight.T
    if weight.ndim == 2:
        y = x @ weight.T
        return y if bias is None else y + bias[None]
    y = jax.lax.conv_general_dilated(x, weight, (1,) * (weight.ndim - 2), "SAME")
    return y if bias is None else y + bias.reshape(1, -1, *[1] * (weight.ndim - 2))


def inputs(kind: str, module: Module) -> Any:
    """Inputs for such a layer."""
    rng = np.random.default_rng(5)
    if kind == "embedding":
        rows, size = module.shape
        return {"tokens": rng.integers(0, rows, (2, 3)), "hidden": rng.normal(size=(3, size))}
    if module.kind == "conv":
        return rng.normal(size=(2, module.shape[1], *[5] * len(module.kernel)))
    return rng.normal(size=(3, module.shape[1]))


def differing(chains: Sequence[Sequence[str]], kind: str, module: Module) -> list[str]:
    """The chains whose outputs differ from those of the fold's weights.

    Each chain has its own layer, and all layers are one compiled function, which compiles faster
    than one function each.
    """
    layers = {f"{i} {' -> '.join(kinds)}": kinds for i, kinds in enumerate(chains)}
    params, x = tree(dict.fromkeys(layers, module), 1), inputs(kind, module)
    parts: list[dict[str, Any]] = [{} for _ in range(max(map(len, chains)))]
    for seed, (layer, kinds) in enumerate(layers.items()):
        for updates, adapter in zip(parts, chain(kinds, module, seed), strict=False):
            updates[layer] = adapter.updates["site"]
    adapters = [jaxmix.Adapter(updates, 0.5 + 0.4 * i, f"{i}") for i, updates in enumerate(parts)]

    def outputs(params: Any, x: Any) -> dict[str, Any]:
        parts = ("weight", "bias")
        by_layer = {n: {f"site.{p}": params.get(f"{n}.{p}") for p in parts} for n in layers}
        return {name: run(layer, x) for name, layer in by_layer.items()}

    @jax.jit
    def unmerged(params: Any, adapters: Any, x: Any) -> dict[str, Any]:
        return quietly_factored(outputs)(jaxmix.attach(params, adapters), x)

    got, want = unmerged(params, adapters, x), outputs(fold_tree(params, adapters), x)
    return [
        name
        for name in layers
        for g, w in zip(jax.tree.leaves(got[name]), jax.tree.leaves(want[name]), strict=True)
        if not np.abs(np.asarray(g) - w).max() < 1e-10 * max(np.abs(w).max(), 1.0)
    ]


def thorough(*values: Any) -> list[Any]:
    """Parameter values that only `make test-all` runs."""
    return [pytest.param(value, marks=pytest.mark.thorough) for value in values]


@pytest.mark.parametrize("length", [1, 2, *thorough(3)])
def test_every_chain_of_the_first_six(length: int) -> None:
    """All 6ⁿ ordered chains."""
    chains = list(product(FAMILIES, repeat=length))
    with jax.enable_x64(True):
        for start in range(0, len(chains), 72):
            assert differing(chains[start : start + 72], "linear", LINEAR) == []


@pytest.mark.parametrize("part", [0, *thorough(1, 2, 3)])
def test_every_pair_of_all_families(part: int) -> None:
    """In both orders, within chains of six."""
    with jax.enable_x64(True):
        assert differing(CHAINS[part::4], "linear", LINEAR) == []


@pytest.mark.parametrize("kind", ["conv1d", *thorough("conv2d", "conv3d"), "embedding"])
def test_other_modules(kind: str) -> None:
    """Every family alone, and before and after a LoRA; with experts for convolutions."""
    module = KINDS[kind]
    names = tuple(ALL) if kind == "conv1d" else FLAT
    chains = [(name,) for name in names] + [("LoRA", name, "LoHa") for name in FLAT[::3]]
    with jax.enable_x64(True):
        assert differing(chains, kind, module) == []
