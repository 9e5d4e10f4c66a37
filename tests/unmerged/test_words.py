"""Law 3 for factored leaves: every word of families gives the outputs of the composed weights."""

from collections.abc import Sequence
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmix

from ..laws.draws import FAMILIES, KINDS, Module, tree
from ..laws.test_every_family import ALL, FLAT, WORDS, word
from ..laws.truth_all import folded

LINEAR = Module("linear", (6, 8), True)


def run(params: Any, x: Any) -> Any:
    """A layer of the kind that the weight's axes tell."""
    weight, bias = jnp.asarray(params["site.weight"]), params.get("site.bias")
    if isinstance(x, dict):
        return jnp.take(weight, x["tokens"], axis=0), x["hidden"] @ weight.T
    if weight.ndim == 2:
        y = x @ weight.T
        return y if bias is None else y + bias[None]
    y = jax.lax.conv_general_dilated(x, weight, (1,) * (weight.ndim - 2), "SAME")
    return y if bias is None else y + bias.reshape(1, -1, *[1] * (weight.ndim - 2))


def inputs(kind: str, module: Module) -> Any:
    """What such a layer takes."""
    rng = np.random.default_rng(5)
    if kind == "embedding":
        rows, size = module.shape
        return {"tokens": rng.integers(0, rows, (2, 3)), "hidden": rng.normal(size=(3, size))}
    if module.kind == "conv":
        return rng.normal(size=(2, module.shape[1], *[5] * len(module.kernel)))
    return rng.normal(size=(3, module.shape[1]))


def wrong(words: Sequence[Sequence[str]], kind: str, module: Module) -> dict[str, float]:
    """The words whose outputs differ from those of the naive fold's weights, and by how much."""
    params, x = tree({"site": module}, 1), inputs(kind, module)
    found = {}
    for seed, kinds in enumerate(words):
        adapters = word(tuple(kinds), module, seed)
        want = jax.tree.leaves(run(folded(params, adapters), x))
        leaves = jaxmix.attach(params, adapters)
        got = jax.tree.leaves(jaxmix.factored(run, "factored")(leaves, x))
        error = max(
            float(np.abs(g - w).max() / max(np.abs(w).max(), 1.0))
            for g, w in zip(got, want, strict=True)
        )
        if not error < 1e-10:
            found[" -> ".join(kinds)] = error
    return found


@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_every_word_of_the_six(length: int) -> None:
    """All 6ⁿ of them, in their orders."""
    with jax.enable_x64(True), jax.disable_jit():
        assert wrong(list(product(FAMILIES, repeat=length)), "linear", LINEAR) == {}


@pytest.mark.parametrize("part", range(4))
def test_every_pair_of_all_families(part: int) -> None:
    """In both orders, within words of six."""
    with jax.enable_x64(True), jax.disable_jit():
        assert wrong(WORDS[part::4], "linear", LINEAR) == {}


@pytest.mark.parametrize("kind", ["conv1d", "conv2d", "conv3d", "embedding"])
def test_other_modules(kind: str) -> None:
    """Every family alone, and before and after a LoRA; experts among those for convolutions."""
    module = KINDS[kind]
    names = tuple(ALL) if kind == "conv1d" else FLAT
    words = [(name,) for name in names] + [("LoRA", name, "LoHa") for name in FLAT[::3]]
    with jax.enable_x64(True), jax.disable_jit():
        assert wrong(words, kind, module) == {}
