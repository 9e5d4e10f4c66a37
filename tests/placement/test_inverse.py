"""`sites_of` finds the sites of a layout in a tree: the inverse of the layout's rules."""

import pytest

from jaxmix.placement.inverse import sites_of
from jaxmix.placement.layout import Layout, Rule

Shapes = dict[str, tuple[int, ...]]


def leaves_of(rules: list[Rule], shapes: Shapes) -> dict[str, tuple[str, str | None]]:
    """The leaf and the index of each site that the rules find."""
    places = sites_of(Layout("mine", tuple(rules)), shapes)
    return {site: (place.leaf, place.index) for site, place in places.items()}


def test_groups_of_the_name_are_matched() -> None:
    """Sites are in the order of the rules; leaves that no rule names have none."""
    rules = [Rule(r"h\.(\d+)\.(q|k)", r"l.\1.\2.w"), Rule("head", "out.w")]
    shapes: Shapes = {"out.w": (2, 3), "l.10.k.w": (2, 3), "l.2.q.w": (2, 3), "l.2.v.w": (2, 3)}
    sites = leaves_of(rules, shapes)
    assert sites == {
        "h.10.k": ("l.10.k.w", None),
        "h.2.q": ("l.2.q.w", None),
        "head": ("out.w", None),
    }
    assert list(sites)[-1] == "head"


def test_groups_of_the_index_are_counted() -> None:
    """Each layer of a stack is a site, and so is each expert of each layer."""
    rules = [Rule(r"h\.(\d+)\.q", "q.w", index=r"\1")]
    assert leaves_of(rules, {"q.w": (3, 4, 5)}) == {f"h.{i}.q": ("q.w", f"{i}") for i in range(3)}
    rules = [Rule(r"h\.(\d+)\.e\.(\d+)", "w", index=r"\2, \1")]
    sites = leaves_of(rules, {"w": (2, 3, 4, 5)})
    assert sites == {f"h.{i}.e.{j}": ("w", f"{j}, {i}") for i in range(3) for j in range(2)}


def test_alternatives_of_numbers_are_the_choices() -> None:
    rules = [Rule(r"h\.(0|2)\.q", "w", index=r"\1")]
    assert list(leaves_of(rules, {"w": (3, 4, 5)})) == ["h.0.q", "h.2.q"]


def test_divided_numbers_are_inverted() -> None:
    """Layers that alternate between two blocks are all found, with their own index."""
    rules = [Rule(r"h\.(\d+)\.q", r"block{\1%2}.w", index=r"{\1//2}")]
    assert leaves_of(rules, {"block0.w": (2, 4, 5), "block1.w": (1, 4, 5)}) == {
        "h.0.q": ("block0.w", "0"),
        "h.1.q": ("block1.w", "0"),
        "h.2.q": ("block0.w", "1"),
    }


def test_layers_with_one_quotient_share_a_leaf() -> None:
    """The largest number in the names bounds the layers."""
    rules = [Rule(r"h\.(\d+)\.q", r"block{\1//2}.w")]
    sites = leaves_of(rules, {"block0.w": (4, 5), "block1.w": (4, 5)})
    assert sites == {f"h.{i}.q": (f"block{i // 2}.w", None) for i in range(4)}


@pytest.mark.parametrize(
    ("site", "name"),
    [
        (r"(?:model\.)?h\.(\d+)", "h.4"),
        (r"(?:model\.)*h\.(\d+)", "model.h.4"),
        (r"(?:text|language)\.(\d+)", "text.4"),
        (r"(?!h\.8)h\.(\d+)", "h.4"),
    ],
)
def test_each_site_is_spelled_once(site: str, name: str) -> None:
    """Optional parts are omitted, repeatable parts kept once, and first alternatives chosen."""
    assert leaves_of([Rule(site, r"l.\1.w")], {"l.4.w": (2, 3)}) == {name: ("l.4.w", None)}


@pytest.mark.parametrize(
    "rule",
    [
        Rule(r"h\.\d+", "w"),
        Rule(r"h.*", "w"),
        Rule(r"h\.(\d+)?", "w"),
        Rule(r"h\.(a|b)", "w"),
        Rule("h", "w", part="bias"),
        Rule("h", "other"),
        Rule("h", "w", "a b c -> a (b c)"),
    ],
    ids=lambda rule: f"{rule.site} {rule.leaf} {rule.part} {rule.axes}",
)
def test_sites_that_cannot_be_found(rule: Rule) -> None:
    """Their names are not determined by the leaf, the leaf is absent, or its axes do not fit."""
    assert leaves_of([rule], {"w": (2, 3)}) == {}


def test_lookahead_excludes_sites() -> None:
    """The rule's own expression decides about each name in the end."""
    rules = [Rule(r"h\.((?!1$)\d+)", "w", index=r"\1")]
    assert list(leaves_of(rules, {"w": (3, 4, 5)})) == ["h.0", "h.2"]


def test_first_rule_with_a_leaf_places_a_site() -> None:
    rules = [Rule("a", "absent"), Rule("a", "w"), Rule("a", "v")]
    assert leaves_of(rules, {"v": (2, 3), "w": (2, 3)}) == {"a": ("w", None)}
