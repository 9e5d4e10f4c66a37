"""Gradients of trained values match finite differences, for every family and for mixes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmix
from jaxmix import Adapter, Mix
from jaxmix.families import OFT, LoRA
from jaxmix.training import trainable

from ..laws.crowd import LINEAR, base

TOLERANCE = 1e-6
STEP = 1e-6
SITES = {site: update for site, update in LINEAR.items() if site.endswith("2")}
X = np.random.default_rng(0).normal(size=(5, 16))
TARGET = np.random.default_rng(1).normal(size=(5, 8))


def layer(params: Any, site: str, x: Any) -> Any:
    """Returns a scalar that depends on every output of a linear layer."""
    out = x @ params[f"{site}.weight"].T + params[f"{site}.bias"][None]
    return jnp.sum(TARGET * jnp.tanh(0.2 * out))


def moved_along(values: Any, directions: Any, step: float) -> Any:
    """Returns the values moved along the directions."""
    return jax.tree.map(lambda x, direction: x + step * direction, values, directions)


def directions_of(values: Any, seed: int = 4) -> Any:
    """Returns a random direction for each value."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.normal(size=x.shape), values)


def derivative_along(gradients: Any, directions: Any) -> float:
    """Returns the derivative along the directions."""
    return sum(
        float(np.sum(np.asarray(gradient) * direction))
        for gradient, direction in zip(
            jax.tree.leaves(gradients), jax.tree.leaves(directions), strict=True
        )
    )


def compile_quickly(function: Any, *args: Any) -> Any:
    """Compiles a function quickly, with few optimizations: it runs only three times."""
    options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return jax.jit(function).lower(*args).compile(options)


@pytest.mark.thorough
def test_every_family_unmerged() -> None:
    """One program has a site per family, whose loss depends only on its values and strength."""
    params = base(SITES)
    parts = [Adapter({site: update}, 0.7, site) for site, update in SITES.items()]

    def loss(values: Any, rebuild: Any) -> Any:
        leaves = jaxmix.attach(params, rebuild(values))
        run = jaxmix.factored(lambda p, x: {site: layer(p, site, x) for site in SITES}, "factored")
        losses = run(leaves, X)
        return sum(losses.values()), losses

    with jax.enable_x64(True):
        values, rebuild = trainable(Mix(tuple(parts)), strengths=True)
        run = compile_quickly(jax.value_and_grad(loss, has_aux=True), values, rebuild)
        gradients = run(values, rebuild)[1]
        directions = directions_of(values)
        above, below = (
            run(moved_along(values, directions, step), rebuild)[0][1] for step in (STEP, -STEP)
        )
    mismatched: dict[str, tuple[float, float]] = {}
    for site in SITES:
        gradient = derivative_along(gradients[site], directions[site])
        expected = (float(above[site]) - float(below[site])) / (2 * STEP)
        if not abs(gradient - expected) < TOLERANCE * max(1.0, abs(expected)):
            mismatched[site] = (gradient, expected)
    assert mismatched == {}


# ---------------------------------------------------------------- mixes

# Families that rotate, read the base, rescale or add, all at one site.
KINDS = ("LoRA", "OFT", "DoRA", "LoHa", "IA3", "HiRA", "LoKr")


def mixed(kinds: tuple[str, ...]) -> Mix:
    """Returns a mix with each kind at one site, and two of the kinds at another."""
    updates = {kind: LINEAR[f"{kind}1"] for kind in kinds}
    return jaxmix.mix(
        *(
            Adapter({"LoRA2": update} | ({"OFT2": update} if i < 2 else {}), 0.6, kind)
            for i, (kind, update) in enumerate(updates.items())
        )
    )


def gradients_of(kinds: tuple[str, ...], how: str, only: tuple[str, ...] | None) -> Any:
    """Returns values, the rebuild function, and a function of the loss and its gradients."""
    params = base(dict.fromkeys(("LoRA2", "OFT2")))

    def run(params: Any, x: Any) -> Any:
        return layer(params, "LoRA2", x) + layer(params, "OFT2", x)

    def loss(values: Any, rebuild: Any) -> Any:
        if how == "dense":
            return run(jaxmix.compose(params, rebuild(values)), X)
        return jaxmix.factored(run, "factored")(jaxmix.attach(params, rebuild(values)), X)

    values, rebuild = trainable(mixed(kinds), only=only, strengths=True)
    return values, rebuild, compile_quickly(jax.value_and_grad(loss), values, rebuild)


@pytest.mark.parametrize("kinds", [KINDS, KINDS[::-1]], ids=["forward", "reversed"])
def test_mix_gradients_match_differences(kinds: tuple[str, ...]) -> None:
    """Each part's gradient matches differences.

    In one order, dense weights and training it alone give the same gradient.
    """
    with jax.enable_x64(True):
        values, rebuild, run = gradients_of(kinds, "factored", None)
        gradients, directions = run(values, rebuild)[1], directions_of(values)
        for kind in kinds:
            partial = {
                k: w if k == kind else jax.tree.map(np.zeros_like, w) for k, w in directions.items()
            }
            above, below = (
                float(run(moved_along(values, partial, s), rebuild)[0]) for s in (STEP, -STEP)
            )
            expected = (above - below) / (2 * STEP)
            assert derivative_along(gradients, partial) == pytest.approx(
                expected, rel=TOLERANCE, abs=TOLERANCE
            ), kind
        others = (("dense", None), ("factored", kinds[1:2])) if kinds == KINDS else ()
        for how, only in others:
            values, rebuild, run = gradients_of(kinds, how, only)
            gradients_again = run(values, rebuild)[1]
            assert list(gradients_again) == list(only or sorted(kinds))
            for kind in gradients_again:
                for actual, expected in zip(
                    *map(jax.tree.leaves, (gradients_again[kind], gradients[kind])), strict=True
                ):
                    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-11)


# ---------------------------------------------------------------- the base has no gradient


def test_base_gets_no_gradient() -> None:
    """The compiled program needs far less memory than the base's weights take."""
    sites, size, tokens = [f"layers.{i}" for i in range(3)], 512, 16
    outline = jax.ShapeDtypeStruct
    params = {f"{site}.weight": outline((size, size), jnp.float32) for site in sites}
    make_ones: Any = np.ones
    lora = LoRA(make_ones((4, size), np.float32), make_ones((size, 4), np.float32), 0.5)
    oft = OFT(make_ones((size // 8, 28), np.float32))
    mixed = jaxmix.mix(
        Adapter(dict.fromkeys(sites, lora), name="lora"),
        Adapter(dict.fromkeys(sites, oft), name="oft"),
    )
    values, rebuild = trainable(mixed)

    def run(params: Any, x: Any) -> Any:
        for site in sites:
            x = jnp.tanh(x @ params[f"{site}.weight"].T)
        return jnp.sum(x)

    def memory(loss: Any) -> Any:
        x = outline((tokens, size), jnp.float32)
        return jax.jit(jax.grad(loss)).lower(values, rebuild, params, x).compile().memory_analysis()

    base_size = 4 * size * size * len(sites)
    unmerged = memory(lambda v, w, p, x: jaxmix.factored(run)(jaxmix.attach(p, w(v)), x))
    dense = memory(lambda v, w, p, x: run(jaxmix.compose(p, w(v)), x))
    assert unmerged.output_size_in_bytes < 0.02 * base_size
    assert unmerged.temp_size_in_bytes < 0.2 * base_size
    # The dense program has gradients of the weights, which shows that the check can fail.
    assert dense.temp_size_in_bytes > base_size
