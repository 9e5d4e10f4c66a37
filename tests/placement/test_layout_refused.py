"""Invalid rules and layouts are refused where they are made, or at a leaf that they do not fit."""

from typing import Any

import numpy as np
import pytest

import jaxmix
from jaxmix import Adapter, Layout, Rule
from jaxmix.errors import LayoutError
from jaxmix.placement.layout import LAYOUTS, libraries

from ..laws.draws import Module, draw_update, ones
from ..messages import full_text


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
