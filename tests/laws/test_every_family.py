"""Words over all families at once: every pair in both orders, and random words of up to six."""

from itertools import pairwise, product
from typing import Any

import jax
import numpy as np
import pytest

import jaxmix
from jaxmix.families import FAMILIES, Update, parts_of

from .draws import KINDS, MAKERS, Module, tree
from .draws_additive import MAKERS as ADDITIVE
from .draws_others import MAKERS as OTHERS
from .draws_turning import MAKERS as TURNING
from .truth_all import folded

ALL = {**MAKERS, **ADDITIVE, **TURNING, **OTHERS}
# Its leaf is a stack of matrices, which a convolution's can stand for.
STACKED = ("ExpertLoRA",)
FLAT = tuple(name for name in ALL if name not in STACKED)
STRENGTHS = (0.6, -1.2, 1.0, 0.5, 1.7, -0.4)


def word(kinds: tuple[str, ...], module: Module, seed: int) -> list[jaxmix.Adapter]:
    """An adapter of each kind, no two alike."""
    return [
        jaxmix.Adapter(
            {"site": ALL[kind](np.random.default_rng([seed, i]), module)}, STRENGTHS[i], f"{i}"
        )
        for i, kind in enumerate(kinds)
    ]


def wrong(params: dict[str, Any], adapters: list[jaxmix.Adapter]) -> float:
    """The largest difference from the fold, beside the largest number."""
    got = jaxmix.compose(params, adapters)
    return max(
        float(np.abs(np.asarray(got[name]) - truth).max() / max(np.abs(truth).max(), 1.0))
        for name, truth in folded(params, adapters).items()
    )


def test_no_family_is_left_out() -> None:
    """A new one joins the makers; what is made is of it."""
    module, seen = KINDS["conv1d"], set()
    for kind in ALL:
        update: Update = ALL[kind](np.random.default_rng(0), module)
        seen |= {update.family, *(part.family for part in parts_of(update))}
    assert set(FAMILIES) - seen == set()


def words_of_all_pairs(letters: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Words of six in which each letter follows each other one, and itself, exactly once.

    They are cut from a de Bruijn sequence: of letters a < b < … it is a ab ac … b bc … .
    """
    order = range(len(letters))
    circle = [x for i in order for x in (i, *(y for j in order if j > i for y in (i, j)))]
    circle.append(circle[0])
    return [tuple(letters[x] for x in circle[i : i + 6]) for i in range(0, len(circle) - 1, 5)]


WORDS = words_of_all_pairs(FLAT)
PARTS = 16


def test_the_words_hold_every_pair_in_both_orders() -> None:
    """Also of a family with itself."""
    found = [pair for word in WORDS for pair in pairwise(word)]
    assert sorted(found) == sorted(product(FLAT, repeat=2))


@pytest.mark.parametrize("part", range(PARTS))
def test_every_pair(part: int) -> None:
    """Among others, on a linear layer."""
    module = Module("linear", (6, 8), True)
    params = tree({"site": module}, 1)
    with jax.enable_x64(True), jax.disable_jit():
        words = list(enumerate(WORDS))[part::PARTS]
        errors = {kinds: wrong(params, word(kinds, module, seed)) for seed, kinds in words}
    assert {kinds: error for kinds, error in errors.items() if not error < 1e-10} == {}


def test_a_stack_with_every_other() -> None:
    """Experts, before and after what a convolution of that shape takes."""
    module = KINDS["conv1d"]
    params = tree({"site": module}, 1)
    with jax.enable_x64(True), jax.disable_jit():
        for seed, kind in enumerate(FLAT):
            adapters = word(("ExpertLoRA", kind, "ExpertLoRA"), module, seed)
            assert wrong(params, adapters) < 1e-11, kind


@pytest.mark.parametrize("seed", range(36))
def test_random_words(seed: int) -> None:
    """Of one to six letters, on layers of every kind."""
    rng = np.random.default_rng(seed)
    place = ("wide", "tall", "square", "conv1d", "conv2d", "embedding")[seed % 6]
    module = KINDS[place]
    kinds = tuple(str(kind) for kind in rng.choice(FLAT, size=1 + seed // 6))
    params = tree({"site": module}, seed)
    with jax.enable_x64(True), jax.disable_jit():
        assert wrong(params, word(kinds, module, seed)) < 1e-10, kinds


@pytest.mark.parametrize("seed", range(4))
def test_associative(seed: int) -> None:
    """However a word is cut into mixes, it is the same one."""
    rng = np.random.default_rng(1000 + seed)
    module = Module("linear", (6, 8), True)
    params = tree({"site": module}, seed)
    a, b, c, d = word(tuple(map(str, rng.choice(FLAT, size=4))), module, seed)
    with jax.enable_x64(True), jax.disable_jit():
        one = jaxmix.mix(jaxmix.mix(a, b), jaxmix.mix(c, d))(params)
        two = jaxmix.mix(a, jaxmix.mix(b, jaxmix.mix(c, d)))(params)
        for name in params:
            np.testing.assert_array_equal(one[name], two[name])


def test_the_order_counts() -> None:
    """So that the tables can fail: most pairs do not commute."""
    module = Module("linear", (6, 8), True)
    params = tree({"site": module}, 1)
    differ = 0
    pairs = list(product(("OFT", "IA3", "HRA", "Tokens", "BOFT", "RoAd"), ("LoRA", "VeRA", "MiSS")))
    with jax.enable_x64(True), jax.disable_jit():
        for pair in pairs:
            a, b = word(pair, module, 3)
            one, two = jaxmix.compose(params, [a, b]), jaxmix.compose(params, [b, a])
            differ += not np.allclose(one["site.weight"], two["site.weight"], atol=1e-3)
    assert differ == len(pairs)
