"""Words of the families that turn a weight or read it, among LoRA and DoRA, against the fold."""

from typing import Any

import jax
import numpy as np
import pytest

import jaxmix

from ..families.formulas import Leaves
from .draws import KINDS, Module, tree
from .draws import MAKERS as OTHERS
from .draws_turning import MAKERS
from .truth import Site, _step
from .truth_turning import step

ALL = {**MAKERS, "LoRA": OTHERS["LoRA"], "DoRA": OTHERS["DoRA"]}
STRENGTHS = (0.6, -1.2, 1.0)


def folded(params: Any, word: list[jaxmix.Adapter]) -> dict[str, np.ndarray]:
    """The leaves of the one site, update by update, in dense NumPy."""
    w0, b0 = params["site.weight"], params.get("site.bias")
    none = np.zeros(len(w0))
    w, b = w0, b0
    for adapter in word:
        (update,), s = adapter.updates.values(), float(adapter.strength)
        flat, base = w.reshape(len(w), -1), w0.reshape(len(w0), -1)
        biases = (none, none) if b is None else (b, b0)
        new = step(Leaves(flat, biases[0], base, biases[1]), s, update)
        if new is None:
            site = _step(Site(w, b, w0, b0), s, update)
            assert site.weight is not None
            w, b = site.weight, site.bias
        else:
            w, b = new[0].reshape(w0.shape), None if b is None else new[1]
    return {"site.weight": w} | ({} if b is None else {"site.bias": b})


def word(kinds: tuple[str, ...], module: Module, seed: int) -> list[jaxmix.Adapter]:
    """An adapter of each kind."""
    return [
        jaxmix.Adapter(
            {"site": ALL[kind](np.random.default_rng([seed, i]), module)}, STRENGTHS[i], f"{i}"
        )
        for i, kind in enumerate(kinds)
    ]


def close(params: Any, adapters: list[jaxmix.Adapter], got: Any) -> None:
    """Every leaf, to float64's noise beside the largest number."""
    for name, truth in folded(params, adapters).items():
        atol = 1e-11 * max(1.0, float(np.abs(truth).max()))
        np.testing.assert_allclose(got[name], truth, rtol=1e-11, atol=atol)


# All pairs on a linear layer are in `test_every_family`.
PAIRS = {kind: [(one, "DoRA") for one in MAKERS] for kind in KINDS if kind != "norm"}


@pytest.mark.parametrize("kind", PAIRS)
def test_pairs_on_every_kind_of_module(kind: str) -> None:
    """With a DoRA after it, eagerly."""
    module = KINDS[kind]
    params = tree({"site": module}, 1)
    with jax.enable_x64(True), jax.disable_jit():
        for seed, kinds in enumerate(PAIRS[kind]):
            adapters = word(kinds, module, seed)
            close(params, adapters, jaxmix.compose(params, adapters))


@pytest.mark.parametrize("kind", MAKERS)
def test_compiled(kind: str) -> None:
    """Pass by pass and as one function, between two others."""
    module = Module("linear", (6, 8), True)
    params = tree({"site": module}, 2)
    adapters = word(("LoRA", kind, "DoRA"), module, 5)
    with jax.enable_x64(True):
        for run in (jaxmix.compose, jax.jit(jaxmix.compose)):
            close(params, adapters, run(params, adapters))


def test_the_order_counts() -> None:
    """Two turns in the other order are another model."""
    module = KINDS["wide"]
    params = tree({"site": module}, 3)
    one, two = word(("BOFT", "IA3"), module, 0), word(("BOFT", "HRA"), module, 0)
    with jax.enable_x64(True), jax.disable_jit():
        got = jaxmix.compose(params, two[::-1])["site.weight"]
        assert np.abs(np.asarray(got) - folded(params, two)["site.weight"]).max() > 0.1
        close(params, one, jaxmix.compose(params, one))
