"""Sites find leaves whose names differ only in wrappers, and no other leaves."""

import pytest

from jaxmix.placement.layout import Layout, Rule
from jaxmix.placement.spelling import Spellings, respelled

LAYOUT = Layout("mine", (Rule(r"(.*)\.q", r"\1.q.w"), Rule(r"(.*)\.q", r"\1.q.b", part="bias")))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("h.0.q", ("_orig_mod.h.0.q", "module.h.0.q")),
        ("module.h.1.module.q", ("h.1.q",)),
        ("h.2.q", ()),
    ],
)
def test_names_without_wrappers_decide(name: str, expected: tuple[str, ...]) -> None:
    assert Spellings(["_orig_mod.h.0.q", "module.h.0.q", "h.1.q"]).of(name) == expected


@pytest.mark.parametrize(
    ("leaves", "weights", "biases"),
    [
        (["h.q.w", "h.q.b"], ["h.q.w"], ["h.q.b"]),
        (["_orig_mod.h.q.w", "_orig_mod.h.q.b"], ["_orig_mod.h.q.w"], ["_orig_mod.h.q.b"]),
        # A leaf with the layout's exact name wins, even if only one of weight and bias has one.
        (["h.q.w", "module.h.q.w", "module.h.q.b"], ["h.q.w"], ["h.q.b"]),
        (["_orig_mod.h.q.w", "module.h.q.w"], ["_orig_mod.h.q.w", "module.h.q.w"], []),
        (["other.q.w"], ["h.q.w"], ["h.q.b"]),
    ],
    ids=["own names", "wrapped", "both", "two candidates", "none"],
)
def test_places_have_the_leaves_names(
    leaves: list[str], weights: list[str], biases: list[str]
) -> None:
    places = respelled(LAYOUT, "h.q", leaves, Spellings(leaves))
    assert [place.leaf for place in places["weight"]] == weights
    assert [place.leaf for place in places["bias"]] == biases
