"""Gradients of what is trained against differences: every family, and mixes, dense and not."""

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
AIM = np.random.default_rng(1).normal(size=(5, 8))


def layer(params: Any, site: str, x: Any) -> Any:
    """A linear layer's output, as a number that all of it has a part in."""
    out = x @ params[f"{site}.weight"].T + params[f"{site}.bias"][None]
    return jnp.sum(AIM * jnp.tanh(0.2 * out))


def moved(values: Any, ways: Any, step: float) -> Any:
    """Values, moved along ways."""
    return jax.tree.map(lambda x, way: x + step * way, values, ways)


def ways_of(values: Any, seed: int = 4) -> Any:
    """A random way for each number."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.normal(size=x.shape), values)


def along(slopes: Any, ways: Any) -> float:
    """The slope along ways."""
    return sum(
        float(np.sum(np.asarray(slope) * way))
        for slope, way in zip(jax.tree.leaves(slopes), jax.tree.leaves(ways), strict=True)
    )


def quickly(function: Any, *args: Any) -> Any:
    """A function compiled for these arguments without care: it is run three times."""
    options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return jax.jit(function).lower(*args).compile(options)


def test_every_family_un_merged() -> None:
    """One program with a site of each: its own loss by what is trained of it, and by strength."""
    params = base(SITES)
    parts = [Adapter({site: update}, 0.7, site) for site, update in SITES.items()]

    def loss(values: Any, whole: Any) -> Any:
        leaves = jaxmix.attach(params, whole(values))
        run = jaxmix.factored(lambda p, x: {site: layer(p, site, x) for site in SITES}, "factored")
        each = run(leaves, X)
        return sum(each.values()), each

    with jax.enable_x64(True):
        values, whole = trainable(Mix(tuple(parts)), strengths=True)
        run = quickly(jax.value_and_grad(loss, has_aux=True), values, whole)
        slopes = run(values, whole)[1]
        ways = ways_of(values)
        more, less = (run(moved(values, ways, step), whole)[0][1] for step in (STEP, -STEP))
    wrong: dict[str, tuple[float, float]] = {}
    for site in SITES:
        found = along(slopes[site], ways[site])
        wanted = (float(more[site]) - float(less[site])) / (2 * STEP)
        if not abs(found - wanted) < TOLERANCE * max(1.0, abs(wanted)):
            wrong[site] = (found, wanted)
    assert wrong == {}


# ---------------------------------------------------------------- mixes

# Rotations, what reads the base, what rescales, what adds, at one site; in two orders.
KINDS = ("LoRA", "OFT", "DoRA", "LoHa", "IA3", "HiRA", "LoKr")


def mixed(kinds: tuple[str, ...]) -> Mix:
    """An adapter of each kind at one site, and of two of them at another."""
    updates = {kind: LINEAR[f"{kind}1"] for kind in kinds}
    return jaxmix.mix(
        *(
            Adapter({"LoRA2": update} | ({"OFT2": update} if i < 2 else {}), 0.6, kind)
            for i, (kind, update) in enumerate(updates.items())
        )
    )


def slopes_of(kinds: tuple[str, ...], how: str, only: tuple[str, ...] | None) -> Any:
    """Values, whole, and the function that gives the loss and its slopes."""
    params = base(dict.fromkeys(("LoRA2", "OFT2")))

    def run(params: Any, x: Any) -> Any:
        return layer(params, "LoRA2", x) + layer(params, "OFT2", x)

    def loss(values: Any, whole: Any) -> Any:
        if how == "dense":
            return run(jaxmix.compose(params, whole(values)), X)
        return jaxmix.factored(run, "factored")(jaxmix.attach(params, whole(values)), X)

    values, whole = trainable(mixed(kinds), only=only, strengths=True)
    return values, whole, quickly(jax.value_and_grad(loss), values, whole)


@pytest.mark.parametrize("kinds", [KINDS, KINDS[::-1]], ids=["one order", "the other"])
def test_mixes(kinds: tuple[str, ...]) -> None:
    """All parts trained: against differences, each part by itself; one part: the same slopes."""
    with jax.enable_x64(True):
        values, whole, run = slopes_of(kinds, "factored", None)
        slopes, ways = run(values, whole)[1], ways_of(values)
        for kind in kinds:
            one = {k: w if k == kind else jax.tree.map(np.zeros_like, w) for k, w in ways.items()}
            more, less = (float(run(moved(values, one, s), whole)[0]) for s in (STEP, -STEP))
            wanted = (more - less) / (2 * STEP)
            assert along(slopes, one) == pytest.approx(wanted, rel=TOLERANCE, abs=TOLERANCE), kind
        for how, only in (("dense", None), ("factored", kinds[1:2])):
            values, whole, run = slopes_of(kinds, how, only)
            again = run(values, whole)[1]
            assert list(again) == list(only or sorted(kinds))
            for kind in again:
                for ours, theirs in zip(
                    *map(jax.tree.leaves, (again[kind], slopes[kind])), strict=True
                ):
                    np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-11)


# ---------------------------------------------------------------- the base is left alone


def test_no_slope_of_the_base_is_made() -> None:
    """What the compiled program needs beside its arguments is far less than the base's weights."""
    sites, size, tokens = [f"layers.{i}" for i in range(6)], 512, 16
    outline = jax.ShapeDtypeStruct
    params = {f"{site}.weight": outline((size, size), jnp.float32) for site in sites}
    ones: Any = np.ones
    lora = LoRA(ones((4, size), np.float32), ones((size, 4), np.float32), 0.5)
    oft = OFT(ones((size // 8, 28), np.float32))
    mixed = jaxmix.mix(
        Adapter(dict.fromkeys(sites, lora), name="lora"),
        Adapter(dict.fromkeys(sites, oft), name="oft"),
    )
    values, whole = trainable(mixed)

    def run(params: Any, x: Any) -> Any:
        for site in sites:
            x = jnp.tanh(x @ params[f"{site}.weight"].T)
        return jnp.sum(x)

    def memory(loss: Any) -> Any:
        x = outline((tokens, size), jnp.float32)
        return jax.jit(jax.grad(loss)).lower(values, whole, params, x).compile().memory_analysis()

    base = 4 * size * size * len(sites)
    apart = memory(lambda v, w, p, x: jaxmix.factored(run)(jaxmix.attach(p, w(v)), x))
    dense = memory(lambda v, w, p, x: run(jaxmix.compose(p, w(v)), x))
    assert apart.output_size_in_bytes < 0.02 * base
    assert apart.temp_size_in_bytes < 0.2 * base
    # Where weights are made there are slopes of them: the check can fail.
    assert dense.temp_size_in_bytes > base
