"""Stacks of layers, found by the additional axis that all leaves of a subtree share."""

import pytest

from jaxmix.placement.stacks import Stack, stacks

Shapes = dict[str, tuple[int, ...]]

LAYERS: Shapes = {
    "layers.up.kernel": (3, 4, 5),
    "layers.up.bias": (3, 5),
    "layers.norm.scale": (3, 4),
    "head.kernel": (4, 7),
}


def test_vectors_show_a_stack() -> None:
    """Every leaf below the stack has the axis; leaves outside of it do not."""
    layers = (Stack("layers", 0, 3),)
    assert stacks(LAYERS, {}) == {name: layers for name in LAYERS if name.startswith("layers.")}


@pytest.mark.parametrize(
    "shapes",
    [
        {"layers.up.kernel": (4, 5), "layers.up.bias": (5,), "layers.norm.scale": (4,)},
        {"layers.up.kernel": (3, 4, 5), "layers.up.bias": (2, 5)},
        # A single layer with heads: kernel (D, N, H) and bias (N, H).
        {"query.kernel": (8, 2, 4), "query.bias": (2, 4)},
        # Vectors alone, without a matrix, may be anything.
        {"layers.norm.scale": (3, 4), "layers.norm.bias": (3, 4)},
        {"layers.conv.kernel": (3, 4, 5)},
        {"other.up.kernel": (3, 4, 5)},
        {},
    ],
    ids=["matrices", "two sizes", "heads", "vectors", "convolution", "no plural name", "empty"],
)
def test_no_stack(shapes: Shapes) -> None:
    assert stacks(shapes, {}) == {}


def test_layers_on_the_second_axis() -> None:
    """nnx.scan may put the layers after the first axis."""
    shapes = {"layers.up.kernel": (4, 3, 5), "layers.up.bias": (5, 3), "layers.n.scale": (4, 3)}
    assert set(stacks(shapes, {}).values()) == {(Stack("layers", 1, 3),)}


def test_plural_names_decide_without_vectors() -> None:
    """A subtree without vectors is a stack if its name says so."""
    for root in ("layers", "blocks", "decoder_layers", "stack", "model.repeats"):
        name = f"{root}.up.kernel"
        assert stacks({name: (3, 4, 5)}, {}) == {name: (Stack(root, 0, 3),)}
    # A list of layers has a subtree for each layer.
    assert stacks({"layers.0.up.kernel": (3, 4, 5)}, {}) == {}


def test_nested_stacks_are_outermost_first() -> None:
    shapes = {
        "blocks.layers.up.kernel": (2, 3, 4, 5),
        "blocks.layers.up.bias": (2, 3, 5),
        "blocks.norm.scale": (2, 4),
    }
    found = stacks(shapes, {})
    assert found["blocks.layers.up.kernel"] == (Stack("blocks", 0, 2), Stack("blocks.layers", 1, 3))
    assert found["blocks.norm.scale"] == (Stack("blocks", 0, 2),)


def test_axes_of_classes_decide() -> None:
    """A class that knows its axes overrules the shapes, in both directions."""
    shapes: Shapes = {"m.up.kernel": (3, 4, 5), "m.up.bias": (3, 5)}
    assert stacks(shapes, {"m.up.kernel": ()}) == {}
    heads: Shapes = {"query.kernel": (8, 2, 4), "query.bias": (2, 4)}
    assert stacks(heads, {"query.kernel": (0,)}) == {}  # the bias has no axis of 8
    stacked: Shapes = {"query.kernel": (2, 2, 4), "query.bias": (2, 4)}
    assert stacks({**stacked, "head.kernel": (4, 7)}, {"query.kernel": (0,)}) == {
        name: (Stack("query", 0, 2),) for name in stacked
    }


def test_tree_may_be_one_stack() -> None:
    """A stack of all leaves has the tree as its root."""
    shapes: Shapes = {"up.kernel": (3, 4, 5), "norm.scale": (3, 4)}
    assert stacks(shapes, {}) == {name: (Stack("", 0, 3),) for name in shapes}
