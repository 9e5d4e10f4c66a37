"""Words of the families that add a Δ of their own making, among LoRA and DoRA."""

from typing import Any

import jax
import numpy as np
import pytest

import jaxmix
from jaxmix.affine import Base
from jaxmix.families import Update

from .draws import KINDS, Module, tree
from .draws import MAKERS as OTHERS
from .draws_additive import MAKERS
from .truth import Site, _step

PLACES = tuple(kind for kind in KINDS if kind != "norm")
STRENGTHS = (0.6, -1.2, 1.7)


def word(kind: str, module: Module, seed: int) -> list[jaxmix.Adapter]:
    """A LoRA, one of the kind, and a DoRA, which reads the base and rescales what came before."""
    made = []
    for i, name in enumerate(("LoRA", kind, "DoRA")):
        update = {**OTHERS, **MAKERS}[name](np.random.default_rng([seed, i]), module)
        made.append(jaxmix.Adapter({"site": update}, STRENGTHS[i], name))
    return made


def added(update: Update, w0: np.ndarray, b0: np.ndarray | None) -> tuple[Any, Any]:
    """Δ and δ, as the family's own maps have them at strength 1; the contract knows their truth."""
    matrix = w0.reshape(len(w0), -1)
    base = Base(jax.numpy.asarray(matrix), matrix.shape, None if b0 is None else b0[:, None])
    one = jax.numpy.ones(())
    weight = update.weight_map(base, one).shift.dense().reshape(w0.shape)
    return weight, update.bias_map(base, one).shift.dense()[:, 0]


def folded(params: Any, adapters: list[jaxmix.Adapter]) -> dict[str, np.ndarray]:
    """The leaves of the one site, update by update, in dense NumPy."""
    w0, b0 = params["site.weight"], params.get("site.bias")
    site = Site(w0, b0, w0, b0)
    for adapter in adapters:
        (update,), s = adapter.updates.values(), float(adapter.strength)
        if update.family in MAKERS:
            weight, bias = added(update, w0, b0)
            assert site.weight is not None
            new = None if site.bias is None else site.bias + s * np.asarray(bias)
            site = Site(site.weight + s * np.asarray(weight), new, w0, b0)
        else:
            site = _step(site, s, update)
    assert site.weight is not None
    bias = {} if site.bias is None else {"site.bias": site.bias}
    return {"site.weight": site.weight} | bias


def close(got: Any, expected: Any) -> None:
    """Every leaf, to float64's noise beside the largest number."""
    for name, truth in expected.items():
        atol = 1e-11 * max(1.0, float(np.abs(truth).max()))
        np.testing.assert_allclose(got[name], truth, rtol=1e-11, atol=atol)


@pytest.mark.parametrize("kind", MAKERS)
def test_on_every_kind_of_module(kind: str) -> None:
    """Between two others, and in another order with the one that only adds, eagerly."""
    with jax.enable_x64(True), jax.disable_jit():
        for seed, place in enumerate(PLACES):
            params = tree({"site": KINDS[place]}, 1)
            lora, one, dora = word(kind, KINDS[place], seed)
            expected = folded(params, [lora, one, dora])
            close(jaxmix.compose(params, [lora, one, dora]), expected)
            close(jaxmix.compose(params, [one, lora, dora]), expected)
            assert np.abs(expected["site.weight"] - params["site.weight"]).max() > 1e-2


@pytest.mark.parametrize("kind", MAKERS)
def test_compiled(kind: str) -> None:
    """Pass by pass and as one function; at strength 0 the others alone."""
    module = KINDS["wide"]
    params, adapters = tree({"site": module}, 2), word(kind, module, 5)
    lora, one, dora = adapters
    with jax.enable_x64(True):
        for run in (jaxmix.compose, jax.jit(jaxmix.compose)):
            close(run(params, adapters), folded(params, adapters))
            close(run(params, [lora, 0.0 * one, dora]), folded(params, [lora, dora]))


@pytest.mark.parametrize("kind", MAKERS)
def test_sixteen_bits(kind: str) -> None:
    """Computed in float32, rounded once: within one unit of the last place of bfloat16."""
    module = KINDS["square"]
    (_, one, _) = word(kind, module, 3)
    exact = tree({"site": module}, 2)
    low = {name: jax.numpy.asarray(w, jax.numpy.bfloat16) for name, w in exact.items()}
    held = {name: np.asarray(w, np.float64) for name, w in low.items()}
    got = jaxmix.compose(low, [one])
    with jax.enable_x64(True):
        expected = folded(held, [one])
    for name, truth in expected.items():
        assert got[name].dtype == jax.numpy.bfloat16
        found = np.asarray(got[name], np.float64)
        np.testing.assert_allclose(found, truth, rtol=2**-8, atol=2**-8)
