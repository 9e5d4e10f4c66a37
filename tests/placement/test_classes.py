"""The axes of weights by the classes of Flax's and Equinox's modules."""

from typing import Any

import equinox as eqx
import jax
import pytest
from flax import nnx

from jaxmix.placement.classes import Known, axes_by_class, owners

RNGS = nnx.Rngs(0)
KEY = jax.random.key(0)


def axes(module: Any, leaf: str, shape: tuple[int, ...] | None = None) -> Known | None:
    """The axes of a module's leaf, by default with the leaf's shape."""
    return axes_by_class([{}, module], leaf, shape or getattr(module, leaf).shape)


@pytest.mark.parametrize(
    ("module", "leaf", "known"),
    [
        (nnx.Linear(4, 5, rngs=RNGS), "kernel", Known("linear", (), (1,), (0,))),
        (eqx.nn.Linear(4, 5, key=KEY), "weight", Known("linear", (), (0,), (1,))),
        (eqx.nn.Linear(4, "scalar", key=KEY), "weight", Known("linear", (), (0,), (1,))),
        (
            nnx.LinearGeneral((2, 3), (4, 5), axis=(-2, -1), rngs=RNGS),
            "kernel",
            Known("linear", (), (2, 3), (0, 1)),
        ),
        (
            nnx.Einsum("btd,dnh->btnh", (6, 2, 3), rngs=RNGS),
            "kernel",
            Known("linear", (), (1, 2), (0,)),
        ),
        (nnx.Einsum("bnd,ndh->bnh", (2, 6, 3), rngs=RNGS), "kernel", Known("unclear")),
        (nnx.Conv(4, 5, (3,), rngs=RNGS), "kernel", Known("convolution")),
        (eqx.nn.Conv2d(4, 5, 3, key=KEY), "weight", Known("convolution")),
        (nnx.Embed(7, 4, rngs=RNGS), "embedding", Known("embedding")),
        (nnx.LayerNorm(4, rngs=RNGS), "scale", Known("norm")),
        (eqx.nn.RMSNorm(4), "weight", Known("norm")),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str | Known) else "",
)
def test_axes_of_each_class(module: Any, leaf: str, known: Known) -> None:
    assert axes(module, leaf) == known


def test_biases_and_unknown_classes_have_no_axes() -> None:
    class Linear:
        in_features, out_features = 4, 5

    assert axes(nnx.Linear(4, 5, rngs=RNGS), "bias") is None
    assert axes_by_class([{}, Linear()], "kernel", (4, 5)) is None
    assert axes_by_class([], "kernel", (4, 5)) is None


def test_subclasses_have_the_axes_of_their_class() -> None:
    class Layer(nnx.Linear):
        pass

    assert axes(Layer(4, 5, rngs=RNGS), "kernel") == Known("linear", (), (1,), (0,))


@pytest.mark.parametrize(
    ("shape", "known"),
    [
        ((3, 4, 5), Known("linear", (0,), (2,), (1,))),
        ((4, 3, 5), Known("linear", (1,), (2,), (0,))),
        ((2, 3, 4, 5), Known("linear", (0, 1), (3,), (2,))),
        ((5, 4), Known("unclear")),
        ((4,), Known("unclear")),
    ],
)
def test_additional_axes_are_layers(shape: tuple[int, ...], known: Known) -> None:
    """A shape without the class's features is unclear."""
    assert axes(nnx.Linear(4, 5, rngs=RNGS), "kernel", shape) == known


def test_layers_in_cells_are_recurrent() -> None:
    """A linear layer is recurrent if any module above it is a recurrent cell."""
    cell = nnx.GRUCell(4, 5, rngs=RNGS)
    linear = nnx.Linear(4, 5, rngs=RNGS)
    assert axes_by_class([cell, linear], "kernel", (4, 5)) == Known("recurrent", (), (1,), (0,))


def test_owners_are_outermost_first() -> None:
    model = nnx.List([nnx.Linear(4, 5, rngs=RNGS)])
    tree = {"model": (model,), "other": 1.0}
    (path, _) = next(
        entry for entry in jax.tree_util.tree_flatten_with_path(tree)[0] if "kernel" in str(entry)
    )
    above = owners(tree, path)
    assert above[:3] == [tree, (model,), model]
    assert any(isinstance(owner, nnx.Linear) for owner in above)


def test_owners_end_at_a_key_that_cannot_be_followed() -> None:
    key, attribute = jax.tree_util.DictKey, jax.tree_util.GetAttrKey
    tree = {"a": {"b": 1.0}}
    assert owners(tree, (key("a"), attribute("absent"), key("x"))) == [tree, tree["a"]]
    assert owners(tree, (jax.tree_util.FlattenedIndexKey(0), key("a"))) == [tree]
