"""Chains of every family: each pair in both orders, and random chains of up to six updates."""

from collections.abc import Sequence
from itertools import pairwise, product
from typing import Any

import jax
import numpy as np
import pytest

import jaxmix
from jaxmix.families import FAMILIES, parts_of

from ..families.table import SAMPLES
from ..uncompiled import uncompiled
from .chains import ALL, CHAINS, FLAT, STACKED, chain
from .draws import FAMILIES as FIRST
from .draws import KINDS, MAKERS, Module, tree
from .truth import fold_tree

# The other convolutions and linear layers take the same code. Compiling takes most of the time.
QUICK = {("wide", False), ("embedding", False), ("conv2d", True)}
LAYERS = [
    pytest.param(
        kind,
        compiled,
        id=f"{kind}-{'compiled' if compiled else 'uncompiled'}",
        marks=[] if (kind, compiled) in QUICK else pytest.mark.thorough,
    )
    for kind in KINDS
    if kind != "norm"
    for compiled in (False, True)
]
WIDE = Module("linear", (6, 8), True)
SHARES = 5


def wrong(params: dict[str, Any], adapters: list[jaxmix.Adapter]) -> float:
    """The largest error against the fold, relative to the largest number."""
    out = jaxmix.compose(params, adapters)
    return max(
        float(np.abs(np.asarray(out[name]) - expected).max() / max(np.abs(expected).max(), 1.0))
        for name, expected in fold_tree(params, adapters).items()
    )


def all_wrong(chains: Sequence[Sequence[str]], module: Module) -> dict[str, float]:
    """The chains that differ from the fold, with their errors, uncompiled."""
    params = tree({"site": module}, 1)
    with jax.enable_x64(True), uncompiled():
        errors = {
            " -> ".join(kinds): wrong(params, chain(kinds, module, seed))
            for seed, kinds in enumerate(chains)
        }
    return {kinds: error for kinds, error in errors.items() if not error < 1e-10}


def test_every_family_has_a_sample() -> None:
    """Every family has a sample that draws updates of it."""
    tested = set()
    for draw in ALL.values():
        update = draw(np.random.default_rng(0), KINDS["conv1d"])
        tested |= {update.family, *(part.family for part in parts_of(update))}
    assert set(FAMILIES) - tested == set()
    # These kinds have no formula of PEFT's; the fold applies them itself.
    without_formula = {kind for kind, sample in SAMPLES.items() if sample.peft is None}
    assert without_formula == {"Delta", "Rebase", "Replace", "Together"}


def test_chains_hold_every_pair_in_both_orders() -> None:
    """Pairs of a family with itself are included."""
    pairs = [pair for chain in CHAINS for pair in pairwise(chain)]
    assert sorted(pairs) == sorted(product(FLAT, repeat=2))


# The pairs of a family fail alike, so a fifth of them shows what a change breaks.
FIFTHS = [0, *(pytest.param(i, marks=pytest.mark.thorough) for i in range(1, SHARES))]


@pytest.mark.parametrize("share", FIFTHS)
def test_every_pair(share: int) -> None:
    """Every ordered pair of families, within longer chains on a linear layer."""
    assert all_wrong(CHAINS[share::SHARES], WIDE) == {}


@pytest.mark.thorough
@pytest.mark.parametrize("length", [3, 4])
def test_every_chain_of_the_first_six(length: int) -> None:
    """All 6ⁿ ordered chains."""
    assert all_wrong(list(product(FIRST, repeat=length)), WIDE) == {}


@pytest.mark.thorough
def test_every_chain_of_kinds_that_read_or_replace_the_base() -> None:
    """Three of nine kinds, at least one of them a DoRA."""
    chains = [kinds for kinds in product(MAKERS, repeat=3) if "DoRA" in kinds]
    assert len(chains) == 217 and all_wrong(chains, WIDE) == {}


def test_every_pair_by_pass() -> None:
    """Pairs of the first six by compiled passes, as users run them."""
    with jax.enable_x64(True):
        params = tree({"site": WIDE}, 1)
        pairs = product(FIRST, repeat=2)
        errors = {kinds: wrong(params, chain(kinds, WIDE, i)) for i, kinds in enumerate(pairs)}
    assert {kinds: error for kinds, error in errors.items() if not error < 1e-10} == {}


def differing(
    chains: Sequence[Sequence[str]], module: Module, *, compiled: bool = True
) -> list[str]:
    """The sites that differ from the fold: one site per chain, all in one function."""
    sites = {f"{i} {' -> '.join(kinds)}": kinds for i, kinds in enumerate(chains)}
    params = tree({site: module for site in sites}, 2)
    parts: list[dict[str, Any]] = [{} for _ in range(max(map(len, chains)))]
    for seed, (site, kinds) in enumerate(sites.items()):
        for updates, adapter in zip(parts, chain(kinds, module, seed), strict=False):
            updates[site] = adapter.updates["site"]
    adapters = [jaxmix.Adapter(updates, 0.5 + 0.4 * i, f"{i}") for i, updates in enumerate(parts)]
    with jax.enable_x64(True), uncompiled(apply=not compiled):
        out = jax.tree.map(np.asarray, jax.jit(jaxmix.compose)(params, adapters))
    return [
        name
        for name, expected in fold_tree(params, adapters).items()
        if not np.abs(out[name] - expected).max() < 1e-10 * max(np.abs(expected).max(), 1.0)
    ]


@pytest.mark.parametrize(("layer", "compiled"), LAYERS)
def test_on_every_kind_of_module(layer: str, compiled: bool) -> None:
    """Every kind between a LoRA and a DoRA, which reads the base and rescales earlier updates."""
    chains = [("LoRA", kind, "DoRA") for kind in FLAT]
    assert differing(chains, KINDS[layer], compiled=compiled) == []


def test_experts_with_every_other_kind() -> None:
    """Experts before and after each kind that accepts a convolution of that shape."""
    chains = [(stack, kind, stack) for stack in STACKED for kind in FLAT]
    assert all_wrong(chains, KINDS["conv1d"]) == {}


@pytest.mark.one_of(2)
@pytest.mark.parametrize("seed", range(36))
def test_random_chains(seed: int) -> None:
    """One to six updates, on layers of every kind."""
    rng = np.random.default_rng(seed)
    layer = ("wide", "tall", "square", "conv1d", "conv2d", "embedding")[seed % 6]
    kinds = tuple(str(kind) for kind in rng.choice(FLAT, size=1 + seed // 6))
    assert all_wrong([kinds], KINDS[layer]) == {}


@pytest.mark.parametrize("seed", range(4))
def test_associative(seed: int) -> None:
    """The result does not depend on how a chain is nested into mixes."""
    rng = np.random.default_rng(1000 + seed)
    params = tree({"site": WIDE}, seed)
    a, b, c, d = chain(tuple(map(str, rng.choice(FLAT, size=4))), WIDE, seed)
    with jax.enable_x64(True), uncompiled():
        in_pairs = jaxmix.mix(jaxmix.mix(a, b), jaxmix.mix(c, d))(params)
        from_the_right = jaxmix.mix(a, jaxmix.mix(b, jaxmix.mix(c, d)))(params)
        for name in params:
            np.testing.assert_array_equal(in_pairs[name], from_the_right[name])


def test_most_pairs_do_not_commute() -> None:
    """Otherwise the comparisons of orders could not fail."""
    params = tree({"site": WIDE}, 1)
    differ = 0
    pairs = list(product(("OFT", "IA3", "HRA", "Tokens", "BOFT", "RoAd"), ("LoRA", "VeRA", "MiSS")))
    with jax.enable_x64(True), uncompiled():
        for pair in pairs:
            a, b = chain(pair, WIDE, 3)
            forward, backward = jaxmix.compose(params, [a, b]), jaxmix.compose(params, [b, a])
            differ += not np.allclose(forward["site.weight"], backward["site.weight"], atol=1e-3)
    assert differ == len(pairs)
