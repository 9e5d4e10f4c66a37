"""The leaves that a layout gives to sites, and sites without a leaf."""

import numpy as np
import pytest

import jaxmix
from jaxmix import Adapter, Layout, Rule
from jaxmix.errors import LayoutError
from jaxmix.families import Replace

from ..laws.draws import Module, draw_update, ones
from ..messages import full_text

ANOTHER_MODEL = (
    "Was the adapter trained on another model? If the leaves have other names, pass "
    "layout=jaxmix.Layout(…) with rules."
)


def lora_at(*sites: str, shape: tuple[int, int] = (6, 8)) -> list[Adapter]:
    """Returns a LoRA at these sites."""
    return [Adapter({site: draw_update("LoRA", Module("linear", shape), 2) for site in sites})]


LEAF = ones((6, 8), np.float32)


def test_all_sites_without_a_leaf_are_listed() -> None:
    """Missing sites are listed with the closest leaf names; sites with a leaf are not."""
    params = {"model": {f"layers_{i}": {"q_proj": {"kernel": LEAF.T}} for i in range(3)}}
    params["model"]["norm"] = {"scale": ones(8, np.float32)}
    sites = [f"model.layers.{i}.q_proj" for i in range(3)]
    with pytest.raises(LayoutError) as caught:
        jaxmix.compose(params, lora_at(*sites, "model.layers_1.q_proj"))
    message = str(caught.value)
    assert message.startswith(
        "3 sites of the adapters can't be placed in the params by the layout 'n"
    )
    assert all(
        f"\n  {s}: no leaf for its weight; the nearest are model.layers_{i}.q_proj.kernel"
        in message
        for i, s in enumerate(sites)
    )
    assert "\n  model.layers_1.q_proj" not in message and "layout=jaxmix.Layout(…)" in message


def test_many_sites_without_a_leaf() -> None:
    """Twenty sites are listed and the others counted, without searching names for the others."""
    params = {f"layers.{i}.{'x' * 60}.weight": LEAF for i in range(300)}
    nearest = ", ".join(f"layers.{i}.{'x' * 60}.weight" for i in (0, 1, 10))
    lines = [
        f"  block.{i}.{'y' * 60}: no leaf for its weight; the nearest are {nearest}\n"
        for i in range(20)
    ]
    with pytest.raises(
        LayoutError,
        match=full_text(
            "400 sites of the adapters can't be placed in the params by the layout 'names':\n"
            f"{''.join(lines)}"
            f"  … and 380 more\n{ANOTHER_MODEL} No name map matches all of them to leaves."
        ),
    ):
        jaxmix.compose(params, lora_at(*(f"block.{i}.{'y' * 60}" for i in range(400))))


def test_empty_tree() -> None:
    """An empty tree has no closest names."""
    with pytest.raises(
        LayoutError,
        match=full_text(
            "1 site of the adapters can't be placed in the params by the "
            "layout 'names':\n"
            "  a: no leaf for its weight; the nearest are none: the tree "
            "is empty\n"
            "Was the adapter trained on another model? If the leaves "
            "have other names, pass layout=jaxmix.Layout(…) with rules. "
            "No name map matches all of them to leaves."
        ),
    ):
        jaxmix.compose({}, lora_at("a"))


def test_no_similar_name() -> None:
    """Without a similar name, the error shows a few of the tree's names."""
    with pytest.raises(
        LayoutError,
        match=full_text(
            "  zyxzyxzyxzyxzyx: no leaf for its weight; the nearest are "
            "0.kernel, 1.kernel, 2.kernel"
        ),
    ):
        try:
            jaxmix.compose({i: {"kernel": LEAF} for i in range(9)}, lora_at("zyxzyxzyxzyxzyx"))
        except LayoutError as error:
            raise LayoutError(str(error).splitlines()[1]) from None


def test_no_rule_for_a_site() -> None:
    """A site that no rule matches is an error."""
    with pytest.raises(
        LayoutError,
        match=full_text(
            "1 site of the adapters can't be placed in the params by the "
            "layout 'mine':\n"
            "  b: the layout has no rule for its weight\n"
            "Was the adapter trained on another model? If the leaves "
            "have other names, pass layout=jaxmix.Layout(…) with rules. "
            "No name map matches all of them to leaves."
        ),
    ):
        jaxmix.compose({"w": LEAF}, lora_at("b"), layout=Layout("mine", (Rule("a", "w"),)))


@pytest.mark.parametrize(
    ("leaf", "more"),
    [
        ("a.weight", ""),
        ("_orig_mod.a.weight", " No name map matches all of them to leaves."),
    ],
)
def test_other_leaves_of_the_module_are_near(leaf: str, more: str) -> None:
    """They are not the parts of a quantized weight."""
    with pytest.raises(
        LayoutError,
        match=full_text(
            "1 site of the adapters can't be placed in the params by the layout 'flax':\n"
            f"  a: no leaf for its weight; the nearest are {leaf}\n{ANOTHER_MODEL}{more}"
        ),
    ):
        jaxmix.compose({leaf: LEAF}, lora_at("a"), layout="flax")


def test_site_that_matches_two_leaves() -> None:
    """A site that matches two leaves is ambiguous, and an error."""
    for params, leaves in (
        ({"a.weight": LEAF, "a.kernel": LEAF.T}, "a.kernel, a.weight"),
        ({"a.weight": LEAF, "params": {"a": {"kernel": LEAF.T}}}, "a.weight, params.a.kernel"),
        ({"a": LEAF, "a.weight": LEAF}, "a, a.weight"),
    ):
        with pytest.raises(
            LayoutError,
            match=full_text(
                "1 site of the adapters can't be placed in the params by the layout 'names':\n"
                f"  a: several leaves match its weight: {leaves}\n{ANOTHER_MODEL}"
            ),
        ):
            jaxmix.compose(params, lora_at("a"))


def test_two_leaves_with_one_name() -> None:
    """A nested and a dotted leaf may not have the same name."""
    with pytest.raises(
        LayoutError,
        match=full_text(
            "1 site of the adapters can't be placed in the params by the layout 'names':\n"
            f"  a: the tree has several leaves with the name a.weight\n{ANOTHER_MODEL}"
        ),
    ):
        jaxmix.compose({"a.weight": LEAF, "a": {"weight": LEAF}}, lora_at("a"))


def test_missing_bias() -> None:
    """An adapter with a bias needs a leaf for it."""
    adapters = [Adapter({"a": Replace(bias=ones(6))})]
    with pytest.raises(
        LayoutError,
        match=full_text(
            "1 site of the adapters can't be placed in the params by the layout 'names':\n"
            "  a: the adapter changes its bias, but the tree has no such leaf; add one of zeros\n"
            f"{ANOTHER_MODEL}"
        ),
    ):
        jaxmix.compose({"a.weight": LEAF}, adapters)
    with pytest.raises(
        LayoutError,
        match=full_text(
            "1 site of the adapters can't be placed in the params by the layout 'names':\n"
            "  a: no leaf for its bias; the nearest are b.weight\n"
            f"{ANOTHER_MODEL} No name map matches all of them to leaves."
        ),
    ):
        jaxmix.compose({"b.weight": LEAF}, adapters)
