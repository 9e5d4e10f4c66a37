"""Layouts: their rules, and the leaves that rules choose."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmix
from jaxmix import Adapter, Layout, Rule
from jaxmix.errors import LayoutError
from jaxmix.placement.layout import FLAX, LAYOUTS, NAMES, TORCH

from ..laws.draws import FAMILIES, Module, draw_update, normal, ones
from ..laws.truth import fold
from ..messages import full_text
from ..uncompiled import uncompiled

KINDS = (*FAMILIES, "DoRA", "Replace")


def adapter(module: Module, *sites: str, seed: int = 0) -> list[Adapter]:
    """Returns an adapter of every kind at sites of one shape."""
    return [
        Adapter({s: draw_update(k, module, seed + 10 * i + j) for j, s in enumerate(sites)}, 0.7, k)
        for i, k in enumerate(KINDS)
    ]


def truth(adapters: list[Adapter], site: str, weight: Any, bias: Any = None) -> Any:
    """Returns the weight, and the bias if there is one, after the naive fold of the updates."""
    chain = [(a.strength, a.updates[site]) for a in adapters if site in a.updates]
    folded = fold(chain, weight, bias)
    return folded[0] if bias is None else folded


def composed(params: Any, adapters: Any, **how: Any) -> Any:
    """Returns compose's result in float64, uncompiled."""
    with jax.enable_x64(True), uncompiled():
        return jax.tree.map(np.asarray, jaxmix.compose(params, adapters, **how))


def same(actual: Any, expected: Any) -> None:
    """Asserts equality up to float64's rounding."""
    np.testing.assert_allclose(actual, expected, rtol=1e-11, atol=1e-11)


# ---------------------------------------------------------------- user-defined rules


@dataclass(frozen=True)
class Stored:
    """How the weights (out, in) of sites a0, a1, … lie in one leaf, and the rules for it."""

    leaf: tuple[int, ...]
    get: Callable[[np.ndarray, int], np.ndarray]
    rules: tuple[Rule, ...]
    sites: int = 1
    shape: tuple[int, int] = (6, 8)


STORED = {
    "another name": Stored((6, 8), lambda x, i: x, (Rule("a0", "block.w"),)),
    "transposed": Stored((8, 6), lambda x, i: x.T, (Rule("a0", "block.w", "i o -> o i"),)),
    "heads": Stored(
        (8, 3, 2),
        lambda x, i: x.transpose(1, 2, 0).reshape(6, 8),
        (Rule("a0", "block.w", "d n h -> (n h) d"),),
    ),
    "heads last": Stored(
        (3, 2, 8),
        lambda x, i: x.reshape(6, 8),
        (Rule("a0", "block.w", "n h d -> (n h) d"),),
    ),
    "heads of the input": Stored(
        (4, 2, 6),
        lambda x, i: x.reshape(8, 6).T,
        (Rule("a0", "block.w", "n h d -> d (n h)"),),
    ),
    "fused": Stored(
        (18, 8),
        lambda x, i: x[6 * i : 6 * i + 6],
        tuple(Rule(f"a{i}", "block.w", index=f"{6 * i}:{6 * i + 6}") for i in range(3)),
        sites=3,
    ),
    "fused, the other way": Stored(
        (8, 18),
        lambda x, i: x[:, 6 * i : 6 * i + 6].T,
        tuple(Rule(f"a{i}", "block.w", "i o -> o i", f":, {6 * i}:{6 * i + 6}") for i in range(3)),
        sites=3,
    ),
    "every other row": Stored(
        (12, 8),
        lambda x, i: x[i::2],
        (Rule(r"a(\d)", "block.w", index=r"\1::2"),),
        sites=2,
    ),
    "layers in a stack": Stored(
        (8, 3, 6),
        lambda x, i: x[:, i].T,
        (Rule(r"a(\d)", "block.w", "i o -> o i", r":, \1"),),
        sites=3,
    ),
    "from the end": Stored((2, 6, 8), lambda x, i: x[-1], (Rule("a0", "block.w", index="-1"),)),
    "layers, heads, and one of two": Stored(
        (3, 2, 8, 3, 2),
        lambda x, i: x[i, 1].transpose(1, 2, 0).reshape(6, 8),
        (Rule(r"a(\d)", "block.w", "d n h -> (n h) d", r"\1, 1"),),
        sites=3,
    ),
}


@pytest.mark.parametrize("donate", [False, True])
@pytest.mark.parametrize("jitted", [False, True])
@pytest.mark.parametrize("stored", STORED.values(), ids=STORED)
def test_custom_rules(stored: Stored, jitted: bool, donate: bool) -> None:
    """Updates of all kinds reach the elements that the rules choose; nothing else changes."""
    rng = np.random.default_rng(0)
    sites = [f"a{i}" for i in range(stored.sites)]
    # The compiled case, a program per layout, covers two kinds only.
    adapters = adapter(Module("linear", stored.shape), *sites)
    leaf, normals = normal(rng, *stored.leaf), normal(rng, 3)
    layout = Layout("mine", (*stored.rules, Rule("norm", "norm")))
    with jax.enable_x64(True):
        params = {"block": {"w": jnp.asarray(leaf)}, "norm": jnp.asarray(normals)}
        norm = params["norm"]
        if jitted:
            adapters = [a for a in adapters if a.name in ("LoRA", "DoRA")]
            out = jaxmix.compose(params, adapters, layout=layout, donate=donate)
        else:
            with uncompiled():
                out = jaxmix.compose(params, adapters, layout=layout, donate=donate)
        result = np.asarray(out["block"]["w"])
    assert out["norm"] is norm and result.shape == leaf.shape
    for i, site in enumerate(sites):
        same(stored.get(result, i), truth(adapters, site, stored.get(leaf, i)))
    untouched = ones(leaf.shape, bool)
    for i in range(stored.sites):
        marks = np.arange(leaf.size).reshape(leaf.shape)
        untouched.flat[stored.get(marks, i).ravel()] = False
    assert (result[untouched] == leaf[untouched]).all()


def test_rules_for_biases() -> None:
    """Biases may be split in heads or fused; DoRA's bias may read a donated weight."""
    rng = np.random.default_rng(0)
    module = Module("linear", (6, 8), True)
    with jax.enable_x64(True):
        params = {
            "w": jnp.asarray(normal(rng, 12, 8)),
            "b": jnp.asarray(normal(rng, 2, 3, 2)),
        }
        before = jax.tree.map(np.asarray, params)
        rules = (
            Rule("a0", "w", index="0:6"),
            Rule("a1", "w", index="6:12"),
            Rule(r"a(\d)", "b", "n h -> (n h)", r"\1", part="bias"),
        )
        adapters = [
            Adapter({s: draw_update(k, module, 3 + i) for i, s in enumerate(("a0", "a1"))}, 0.5, k)
            for k in ("Together", "LoRA", "DoRA")
        ]
        out = jaxmix.compose(params, adapters, layout=Layout("mine", rules), donate=True)
        out = jax.tree.map(np.asarray, out)
    for i in range(2):
        rows = slice(6 * i, 6 * i + 6)
        weight, bias = truth(adapters, f"a{i}", before["w"][rows], before["b"][i].ravel())
        same(out["w"][rows], weight)
        same(out["b"][i].ravel(), bias)


def test_table_with_several_spellings() -> None:
    """Of all rules that match a site, the one whose leaf exists is used."""
    rules = (Rule("a", "no.such"), Rule("a", "w", "i o -> o i"), Rule("b", "w"))
    update = draw_update("LoRA", Module("linear", (6, 8)), 0)
    base = normal(np.random.default_rng(0), 8, 6)
    out = composed({"w": base}, [Adapter({"a": update})], layout=Layout("mine", rules))
    same(out["w"].T, fold([(1.0, update)], base.T)[0])


def test_layouts_by_name() -> None:
    """The layout torch has no kernels, flax no weights; names has both."""
    update = draw_update("LoRA", Module("linear", (6, 8)), 0)
    base = normal(np.random.default_rng(0), 6, 8)
    expected = fold([(1.0, update)], base)[0]
    lora = [Adapter({"a": update})]
    for layout in (None, "torch", "names", TORCH, NAMES):
        same(composed({"a.weight": base}, lora, layout=layout)["a.weight"], expected)
    for layout in (None, "flax", "names", FLAX):
        same(composed({"a": {"kernel": base.T}}, lora, layout=layout)["a"]["kernel"].T, expected)
    for tree, layout in (({"a.weight": base}, "flax"), ({"a.kernel": base.T}, "torch")):
        with pytest.raises(
            LayoutError,
            match=full_text(
                f"1 site of the adapters can't be placed in the params by the layout '{layout}':\n"
                f"  a: no leaf for its weight; the nearest are {next(iter(tree))}\n"
                "Was the adapter trained on another model? If the leaves have other names, pass "
                "layout=jaxmix.Layout(…) with rules."
            ),
        ):
            composed(tree, lora, layout=layout)
    assert list(LAYOUTS) == ["torch", "flax", "names"]
