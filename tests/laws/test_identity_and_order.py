"""Laws 1 and 2 over random trees: identity, and order."""

from itertools import permutations
from typing import Any

import jax
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from jaxmix import Adapter, compose, mix

from ..uncompiled import uncompiled
from .draws import KINDS, MAKERS, Module, adapters, draw_update, few, tree, trees
from .running import composed, error
from .truth import fold_tree

ADDITIVE = ("LoRA", "AdaLoRA", "LoHa", "LoKr", "SHiRA")


@few()
@given(data=st.data(), drawn=trees())
def test_identity(data: st.DataObject, drawn: Any) -> None:
    """Without adapters `compose` returns the same object; at strength 0, the same numbers."""
    modules, params = drawn
    assert compose(params, []) is params and mix()(params) is params
    off = data.draw(adapters(modules, strengths=st.just(0.0)))
    with jax.enable_x64(True), uncompiled():
        out = compose(params, off)
    for name, leaf in params.items():
        np.testing.assert_allclose(out[name], leaf, rtol=1e-14, atol=1e-14)


@few()
@given(data=st.data(), drawn=trees())
def test_untouched_leaves_are_the_same_objects(data: st.DataObject, drawn: Any) -> None:
    """The unchanged bias of a module whose weight changes is one of them, and vice versa."""
    modules, params = drawn
    mixed = data.draw(adapters(modules))
    with jax.enable_x64(True), uncompiled():
        out = compose(params, mixed)
    touched: set[str] = set()
    for adapter in mixed:
        for site, update in adapter.updates.items():
            touched |= {f"{site}.weight"} if update.has_weight else set()
            touched |= {f"{site}.bias"} if update.has_bias else set()
    for name, leaf in params.items():
        assert (out[name] is leaf) == (name not in touched), name


@given(data=st.data(), drawn=trees())
def test_adapters_are_applied_in_the_given_order(data: st.DataObject, drawn: Any) -> None:
    """Random adapters on random modules equal the naive fold of their formulas."""
    modules, params = drawn
    mixed = data.draw(adapters(modules))
    assert error(composed(params, mixed), fold_tree(params, mixed)) < 1e-11


@few()
@given(data=st.data(), drawn=trees(max_modules=2))
def test_mix_is_associative(data: st.DataObject, drawn: Any) -> None:
    """Every nesting gives the same result, with DoRA's norm and replaced leaves too."""
    modules, params = drawn
    a, b, c, d = data.draw(adapters(modules, count=4))
    nestings = [
        mix(a, b, c, d),
        mix(mix(a, b), mix(c, d)),
        mix(a, mix(b, mix(c, d))),
        mix(mix(mix(a, b), c), d),
        mix(mix(), a, mix(b), mix(mix(c, d))),
    ]
    expected = fold_tree(params, [a, b, c, d])
    for nesting in (*nestings, [a, mix(b, c), d]):
        assert error(composed(params, nesting), expected) < 1e-11
    with jax.enable_x64(True), uncompiled():
        assert error(nestings[2](params), expected) < 1e-11


@few()
@given(data=st.data(), drawn=trees(max_modules=2, norms=False))
def test_additive_updates_commute(data: st.DataObject, drawn: Any) -> None:
    """All orders of updates with L = R = I give one model."""
    modules, params = drawn
    three = data.draw(adapters(modules, families=ADDITIVE, count=3))
    outs = [composed(params, list(order)) for order in permutations(three)]
    assert max(error(out, outs[0]) for out in outs) < 1e-12


@few()
@given(data=st.data(), drawn=trees(max_modules=2))
def test_composing_in_two_steps(data: st.DataObject, drawn: Any) -> None:
    """Updates that do not read the base may be composed in two steps."""
    modules, params = drawn
    no_reader = tuple(kind for kind in MAKERS if kind != "DoRA")
    first, second = data.draw(adapters(modules, families=no_reader, count=2))
    together = composed(params, [first, second])
    assert error(composed(composed(params, [first]), [second]), together) < 1e-11


def test_base_readers_read_the_base_in_a_mix() -> None:
    """DoRA after LoRA ignores LoRA's result; after a replaced leaf it reads the new leaf."""
    module = Module("linear", (6, 8), True)
    params = tree({"q": module}, 0)
    lora, dora, replacing = (
        Adapter({"q": draw_update(kind, module, seed)}, name=kind)
        for kind, seed in (("LoRA", 0), ("DoRA", 1), ("Replace", 4))
    )
    assert replacing.updates["q"].has_weight
    for before, reads_it in ((lora, False), (replacing, True)):
        mixed = composed(params, [before, dora])
        stepwise = composed(composed(params, [before]), [dora])
        assert (error(mixed, stepwise) < 1e-11) == reads_it


def test_some_kinds_do_not_commute() -> None:
    """Rotations and rescalings do not commute with the others, so these tests can fail."""
    module = KINDS["wide"]
    params = tree({"q": module}, 0)
    for pair in (("LoRA", "OFT"), ("OFT", "OFT"), ("SHiRA", "DoRA"), ("LoHa", "Replace")):
        a, b = (
            Adapter({"q": draw_update(k, module, i + 1)}, name=str(i)) for i, k in enumerate(pair)
        )
        assert error(composed(params, [a, b]), composed(params, [b, a])) > 1e-3, pair
