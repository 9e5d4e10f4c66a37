"""The layout that a tree itself shows: layers of stacks as sites, and heads."""

import numpy as np
import pytest

from jaxmix.placement.layout import Layout
from jaxmix.placement.roles import Roles
from jaxmix.placement.tree import Tree
from jaxmix.placement.tree_layout import own_layout

Shapes = dict[str, tuple[int, ...]]


def layout(shapes: Shapes) -> Layout | None:
    leaves = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    return own_layout(Roles(Tree.of(leaves)))


def found(shapes: Shapes, site: str, part: str = "weight") -> list[tuple[str, str | None]]:
    """The leaves of a site that the tree has, with their indices."""
    table = layout(shapes)
    assert table is not None and table.by_name
    places = [p for p in table.places(site, part) if p.leaf in shapes]  # pyright: ignore
    assert all(place.shape(shapes[place.leaf]) for place in places)
    return [(place.leaf, place.index) for place in places]


STACKED: Shapes = {
    "layers.up.kernel": (3, 4, 5),
    "layers.up.bias": (3, 5),
    "layers.norm.scale": (3, 4),
    "head.kernel": (4, 7),
}


@pytest.mark.parametrize(
    "shapes",
    [
        {},
        {"layers.0.up.kernel": (4, 5), "layers.0.up.bias": (5,), "norm.scale": (4,)},
        {"layers.0.up.weight": (5, 4)},
    ],
    ids=["empty", "flax", "torch"],
)
def test_names_that_suffice_need_no_layout(shapes: Shapes) -> None:
    assert layout(shapes) is None


def test_each_layer_of_a_stack_is_a_site() -> None:
    """Its bias too, and leaves outside of the stack keep their names."""
    assert found(STACKED, "layers.2.up") == [("layers.up.kernel", "2")]
    assert found(STACKED, "layers.2.up", "bias") == [("layers.up.bias", "2")]
    assert found(STACKED, "head") == [("head.kernel", None)]
    table = layout(STACKED)
    assert table is not None
    (place,) = (p for p in table.places("layers.1.up", "weight") if p.leaf == "layers.up.kernel")
    leaf = np.arange(60.0).reshape(3, 4, 5)
    np.testing.assert_array_equal(place.get(leaf), leaf[1].T)  # pyright: ignore


def test_layers_may_be_on_another_axis() -> None:
    """The index has a range for each axis before it, and the bias its own."""
    shapes: Shapes = {
        "layers.up.kernel": (4, 3, 5),
        "layers.up.bias": (5, 3),
        "layers.n.scale": (4, 3),
    }
    assert found(shapes, "layers.1.up") == [("layers.up.kernel", ":, 1")]
    assert found(shapes, "layers.1.up", "bias") == [("layers.up.bias", ":, 1")]


def test_numbers_of_nested_stacks_are_in_the_order_of_names() -> None:
    shapes: Shapes = {
        "blocks.layers.up.kernel": (2, 3, 4, 5),
        "blocks.layers.up.bias": (2, 3, 5),
        "blocks.norm.scale": (2, 4),
    }
    assert found(shapes, "blocks.1.layers.2.up") == [("blocks.layers.up.kernel", "1, 2")]


def test_heads_are_rows_or_columns() -> None:
    """A module with a rule of its own does not match the general rules."""
    shapes: Shapes = {f"a.{x}.kernel": (8, 2, 3) for x in ("query", "key", "value")}
    shapes |= {"a.out.kernel": (2, 3, 8), "a.query.bias": (2, 3)}
    table = layout(shapes)
    assert table is not None
    sizes = {
        site: [p.shape(shapes[p.leaf]) for p in table.places(site, "weight") if p.leaf in shapes]
        for site in ("a.query", "a.out")
    }
    assert sizes == {"a.query": [(6, 8)], "a.out": [(8, 6)]}
    (bias,) = (p for p in table.places("a.query", "bias") if p.leaf in shapes)
    assert bias.shape((2, 3)) == (6,)
