"""Layouts: their rules, the leaves that rules choose, and invalid rules."""

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
from jaxmix.placement.layout import FLAX, LAYOUTS, NAMES, TORCH, libraries
from jaxmix.placement.names import leaf_name, leaf_names

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


# ---------------------------------------------------------------- invalid rules


def test_invalid_site_pattern() -> None:
    """An invalid pattern raises where the rule is created."""
    with pytest.raises(
        LayoutError,
        match=full_text(
            r"the rule's site 'layers.(\\d+.q' is not a regular expression: missing ), "
            r"unterminated "
            "subpattern at position 7. Write the PyTorch module name with its dots escaped, such "
            "as "
            r"layers\.(\d+)\.q_proj."
        ),
    ):
        Rule(r"layers.(\d+.q", "w")


@pytest.mark.parametrize(
    "rule",
    [
        dict(site="a", leaf="w", index=1),
        dict(site="a", leaf="w", part="Weight"),
        dict(site="a", leaf=3),
        dict(site="a", leaf="w", axes=("i", "o")),
        dict(site=None, leaf="w"),
    ],
    ids=str,
)
def test_invalid_part(rule: dict[str, Any]) -> None:
    """An invalid `part` is refused; it would never match."""
    fields = dict(site=None, leaf=None, axes=None, index=None, part="weight", sizes=(), scale=1.0)
    fields |= rule
    with pytest.raises(
        LayoutError,
        match=full_text(
            f"Rule({', '.join(f'{k}={v!r}' for k, v in fields.items())}) is not a rule, expected "
            "strings, and 'weight' or 'bias' as its part. An index is a string too, such as '1'."
        ),
    ):
        Rule(**rule)


@pytest.mark.parametrize("rules", [Rule("a", "w"), [("a", "w")], None, "aw"], ids=str)
def test_single_rule_is_not_a_table(rules: Any) -> None:
    """A single rule is not a table of rules."""
    with pytest.raises(
        LayoutError,
        match=full_text(f"the layout 'mine' has {rules!r}, expected a tuple of jaxmix.Rule."),
    ):
        Layout("mine", rules)


def test_rules_in_a_list() -> None:
    """A list or a generator of rules becomes a tuple."""
    rule = Rule("a", "w")
    rules: Any = [[rule], (r for r in [rule])]
    assert all(Layout("mine", collection) == Layout("mine", (rule,)) for collection in rules)


@pytest.mark.parametrize("layout", ["linen", 3, [Rule("a", "w")], Rule("a", "w")], ids=str)
def test_unknown_layout(layout: Any) -> None:
    """The error lists the known layouts and the accepted types."""
    lora = Adapter({"a": draw_update("LoRA", Module("linear", (6, 8)), 0)})
    with pytest.raises(
        LayoutError,
        match=full_text(
            f"there is no layout {layout!r}, expected None, one of "
            f"{', '.join(map(repr, [*LAYOUTS, *libraries()]))}, or a jaxmix.Layout with rules of "
            "your own."
        ),
    ):
        jaxmix.compose({"w": ones((6, 8), np.float32)}, [lora], layout=layout)


def lacks(what: str, reason: str, at: str = "") -> str:
    """The pattern of the error for a leaf w that does not have what a rule states."""
    return refused(
        f"w{at} of shape (6, 8) does not have the {what} of the layout's rule ({reason}). Fix the "
        "rule."
    )


def refused(reason: str) -> str:
    """The pattern of the error for the site a."""
    return full_text(
        f"leaves that can't take an adapter, expected arrays of floats:\n  a: {reason}"
    )


def not_basic(index: str) -> str:
    """The pattern of the error for an index that can't be parsed."""
    return refused(
        f"the index {index!r} of a layout's rule is not a basic index, expected integers and "
        "slices separated by commas, such as ':, 3' or '0:64', or parts of an axis, such as '1/3' "
        "for the second of three."
    )


def no_group(leaf: str, index: str | None, number: int) -> str:
    """The pattern of the error for a group that is not in the site's expression."""
    return full_text(
        f"the rule for 'a' names a group that the expression does not have, in {leaf!r} or "
        f"{index!r}: invalid group reference {number} at position 1."
    )


# The reasons in parentheses are those of einops and NumPy, except for parts of axes and arrows.
WRONG_RULES: dict[str, tuple[Rule, str]] = {
    "no such group": (Rule("a", r"\1.w"), no_group(r"\1.w", None, 1)),
    "no such group in the index": (Rule("a", "w", index=r"\2"), no_group("w", r"\2", 2)),
    "axes of another number": (
        Rule("a", "w", "d n h -> (n h) d"),
        lacks("axes 'd n h -> (n h) d'", "Wrong shape: expected 3 dims. Received 2-dim tensor."),
    ),
    "axes without an arrow": (
        Rule("a", "w", "o i"),
        lacks("axes 'o i'", "expected the leaf's axes, an arrow, and PyTorch's axes"),
    ),
    "axes that are dropped": (
        Rule("a", "w", "o i -> o"),
        lacks(
            "axes 'o i -> o'",
            "Identifiers only on one side of expression (should be on both): {'i'}",
        ),
    ),
    "sizes that can't be inferred": (
        Rule("a", "w", "(n h) i -> n (h i)"),
        lacks("axes '(n h) i -> n (h i)'", "Could not infer sizes for {SET}").replace(
            r"\{SET\}", r"\{'[nh]',\ '[nh]'\}"
        ),
    ),
    "an index out of range": (
        Rule("a", "w", index="7"),
        lacks("index", "index 7 is out of bounds for axis 0 with size 6", "[7]"),
    ),
    "an index out of range, from the end": (
        Rule("a", "w", "i -> i", index=":, -9"),
        lacks("index", "index -9 is out of bounds for axis 1 with size 8", "[:, -9]"),
    ),
    "an index of three": (
        Rule("a", "w", index="0, 0, 0"),
        lacks(
            "index",
            "too many indices for array: array is 2-dimensional, but 3 were indexed",
            "[0, 0, 0]",
        ),
    ),
    "a step of zero": (
        Rule("a", "w", index="::0"),
        lacks("index", "slice step cannot be zero", "[::0]"),
    ),
    "a fraction as the index": (Rule("a", "w", index="1.5"), not_basic("1.5")),
    "an empty index": (Rule("a", "w", index=""), not_basic("")),
    "parts that an axis does not have": (
        Rule("a", "w", index=":, 0/3"),
        lacks("index", "axis 1 can't be divided into 3 equal parts", "[:, 0/3]"),
    ),
    "parts of an absent axis": (
        Rule("a", "w", index=":, :, 0/3"),
        lacks("index", "axis 2 can't be divided into 3 equal parts", "[:, :, 0/3]"),
    ),
    "a part out of range": (
        Rule("a", "w", index="3/3"),
        lacks("index", "there is no part 3; parts are numbered from 0 to 2", "[3/3]"),
    ),
    "zero parts": (Rule("a", "w", index="1/0"), not_basic("1/0")),
    "every second part": (Rule("a", "w", index="::2/3"), not_basic("::2/3")),
    "parts of parts": (Rule("a", "w", index="1/3/2"), not_basic("1/3/2")),
    "an ellipsis": (Rule("a", "w", index="..., 1"), not_basic("..., 1")),
    "a scalar": (
        Rule("a", "w", index="1, 1"),
        refused("w is a scalar, expected a tensor with axes"),
    ),
}


@pytest.mark.parametrize(("rule", "message"), WRONG_RULES.values(), ids=WRONG_RULES)
def test_rule_that_does_not_fit(rule: Rule, message: str) -> None:
    """The error names the rule, and the leaf with its shape."""
    lora = Adapter({"a": draw_update("LoRA", Module("linear", (6, 8)), 0)})
    with pytest.raises(LayoutError, match=message):
        jaxmix.compose({"w": ones((6, 8), np.float32)}, [lora], layout=Layout("mine", (rule,)))


def test_rules_that_do_not_fit_are_listed_together() -> None:
    """All rules that do not fit are listed in one error."""
    module = Module("linear", (6, 8))
    lora = Adapter({s: draw_update("LoRA", module, 0) for s in ("a", "b", "c")})
    layout = Layout("mine", (Rule("a|c", "w", "x y z -> x (y z)"), Rule("b", "v", index="9")))
    params = {"w": ones((6, 8), np.float32), "v": ones((6, 8), np.float32)}
    with pytest.raises(LayoutError) as caught:
        jaxmix.compose(params, [lora], layout=layout)
    assert [f"\n  {s}: " in str(caught.value) for s in "abc"] == [True] * 3


# ---------------------------------------------------------------- names of leaves


def test_names_of_leaves() -> None:
    """A variable's `value` is left out of a name; an attribute called `value` is kept."""
    key, attr, at = jax.tree_util.DictKey, jax.tree_util.GetAttrKey, jax.tree_util.SequenceKey
    assert leaf_name((key("a"), at(0), attr("kernel"), attr("value"))) == "a.0.kernel"
    assert leaf_name((key("attn"), key("value"))) == "attn.value"
    assert leaf_name((attr("value"),)) == "value"
    assert leaf_name((jax.tree_util.FlattenedIndexKey(3),)) == "3"
    assert leaf_names([(attr("a"), attr("value")), (attr("a"), attr("key"))]) == [
        "a.value",
        "a.key",
    ]
