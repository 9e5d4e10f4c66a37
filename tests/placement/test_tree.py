"""A flattened tree: its leaves by name, and trees of other leaves."""

import jax
import numpy as np
import pytest

from jaxmix.errors import LayoutError
from jaxmix.placement.place import Place
from jaxmix.placement.tree import Tree

from ..messages import full_text

A, B, C = np.ones((2, 3)), np.ones(2), np.zeros(4)


def test_leaves_are_found_by_dotted_names() -> None:
    """Whether the tree is nested or flat; None is no leaf."""
    tree = Tree.of({"m": {"up": {"weight": A, "bias": None}}, "m.norm.scale": B, "list": [C]})
    assert set(tree.positions) == {"m.up.weight", "m.norm.scale", "list.0"}
    assert tree.leaf(Place("m.up.weight")) is A and tree.leaf(Place("list.0")) is C
    assert tree.repeated == frozenset() and tree.root["list"][0] is C


def test_other_leaves_make_a_tree_of_the_same_structure() -> None:
    params = {"b": {"weight": A}, "a": (B, None)}
    tree = Tree.of(params)
    same = tree.with_leaves(tree.leaves)
    assert jax.tree.structure(same) == jax.tree.structure(params) and same["b"]["weight"] is A
    assert tree.with_leaves([1, 2]) == {"a": (1, None), "b": {"weight": 2}}


def test_names_that_several_leaves_have_are_known() -> None:
    """Once each, however often they occur."""
    tree = Tree.of({"a.b.c": A, "a": {"b.c": B, "b": {"c": C}}, "d": A, "e.f": A, "e": {"f": A}})
    assert tree.repeated == {"a.b.c", "e.f"}
    assert set(tree.positions) == {"a.b.c", "d", "e.f"} and len(tree.leaves) == 6


def test_tree_of_nothing_is_refused() -> None:
    with pytest.raises(
        LayoutError,
        match=full_text(
            "the params are None, expected a pytree of weights: a dict of arrays, an nnx.Module or "
            "its state, an Equinox module. Pass the model's weights."
        ),
    ):
        Tree.of(None)
    assert Tree.of({}).positions == {}
