"""Every ordered pair, triple and quadruple of the six families against the naive fold.

A quadruple is a program of its own, so the long words run without compiling; pairs, also with DoRA
and replaced leaves, run compiled too, pass by pass and as one function.
"""

from collections.abc import Sequence
from itertools import product

import jax
import numpy as np
import pytest

import jaxmix

from .draws import FAMILIES, KINDS, Module, made, tree
from .truth import fold_tree

MODULE = Module("linear", (6, 8), True)
SITE = "model.proj"
BASE = tree({SITE: MODULE}, 0)
STRENGTHS = (1.0, 0.6, -1.2, 0.5)
ALL = (*FAMILIES, "DoRA", "Replace", "Together")


def word(families: Sequence[str]) -> list[jaxmix.Adapter]:
    """An adapter of each family, in this order, no two alike."""
    return [
        jaxmix.Adapter({SITE: made(family, MODULE, 7 * i)}, STRENGTHS[i], f"{family} {i}")
        for i, family in enumerate(families)
    ]


def wrong(words: Sequence[Sequence[str]], jitted: bool = False) -> dict[str, float]:
    """The words whose result differs from the truth, with the relative difference."""
    out: dict[str, float] = {}
    for families in words:
        adapters = word(families)
        run = (lambda p, a: jaxmix.compose(p, a)) if not jitted else jax.jit(jaxmix.compose)
        got = run(BASE, adapters)
        for name, truth in fold_tree(BASE, adapters).items():
            error = float(np.abs(np.asarray(got[name]) - truth).max() / np.abs(truth).max())
            if not error < 1e-12:
                out[" -> ".join(families)] = error
    return out


@pytest.mark.parametrize("length", [0, 1, 2, 3, 4])
def test_every_word_of_the_six(length: int) -> None:
    """All 6ⁿ of them, in their orders."""
    words = list(product(FAMILIES, repeat=length))
    with jax.enable_x64(True), jax.disable_jit():
        assert wrong(words) == {} and len(words) == 6**length


@pytest.mark.parametrize("length", [2, 3])
def test_every_word_with_what_reads_or_changes_the_base(length: int) -> None:
    """Words of nine kinds with at least one DoRA, and each other one."""
    words = [w for w in product(ALL, repeat=length) if "DoRA" in w]
    with jax.enable_x64(True), jax.disable_jit():
        assert wrong(words) == {} and len(words) == {2: 17, 3: 217}[length]


@pytest.mark.parametrize("jitted", [False, True], ids=["by pass", "one function"])
def test_every_pair_compiled(jitted: bool) -> None:
    """The same for compiled programs."""
    with jax.enable_x64(True):
        assert wrong(list(product(FAMILIES, repeat=2)), jitted) == {}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_of_module(kind: str) -> None:
    """Pairs of all nine on convolutions, embeddings, norms."""
    module = KINDS[kind]
    params = tree({"site": module}, 1)
    with jax.enable_x64(True), jax.disable_jit():
        for families in product(ALL, repeat=2):
            adapters = [
                jaxmix.Adapter({"site": made(family, module, i)}, STRENGTHS[i + 1], f"{i}")
                for i, family in enumerate(families)
            ]
            got = jaxmix.compose(params, adapters)
            for name, truth in fold_tree(params, adapters).items():
                np.testing.assert_allclose(got[name], truth, rtol=1e-11, atol=1e-11)


def test_the_tables_can_fail() -> None:
    """The other order is another model, for most pairs."""
    with jax.enable_x64(True):
        truth = fold_tree(BASE, word(["LoRA", "OFT"]))
        got = jaxmix.compose(BASE, word(["LoRA", "OFT"])[::-1])
        assert np.abs(np.asarray(got[f"{SITE}.weight"]) - truth[f"{SITE}.weight"]).max() > 0.1
