"""Leaves that can't be updated, and sites that overlap in a leaf."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmix
from jaxmix import Adapter, Layout, Rule
from jaxmix.errors import LayoutError, ShapeError
from jaxmix.families import Replace, Update
from jaxmix.placement.layout import Place
from jaxmix.placement.leaves import overlaps
from jaxmix.placement.sites import Site
from jaxmix.placement.tree import Tree
from jaxmix.pytrees import register_dataclass

from ..laws.draws import Module, draw_update, ones, zeros
from ..messages import full_text
from .test_sites import ANOTHER_MODEL, LEAF, lora_at

# ---------------------------------------------------------------- two sites in one leaf

OVERLAPS: dict[str, tuple[tuple[str | None, str | None], bool]] = {
    "the whole leaf twice": ((None, None), True),
    "whole and part": ((None, "0:2"), True),
    "the same index": (("0:6", "0:6"), True),
    "two spellings": (("0", "-12"), True),
    "slices that overlap": (("0:6", "5:11"), True),
    "disjoint slices": (("0:6", "6:12"), False),
    "even and odd": (("0::2", "1::2"), False),
    "thirds": (("0/3", "1/3"), False),
    "a third and a range": (("0/3", "3:5"), True),
    "a third and two thirds": (("0/3", "1:3/3"), False),
    "two thirds and two thirds": ((":2/3", "1:/3"), True),
    "every second and every third": (("0::2", "3::6"), False),
    "every second and every fourth": (("0::2", "2::4"), True),
    "backwards": (("5::-1", "5:11"), True),
    "other columns": (("0:6, 0:4", "0:6, 4:8"), False),
    "a column in common": (("0:6, 0:5", "0:6, 4:8"), True),
    "a row of a slice": (("3", "0:6"), True),
}


@pytest.mark.parametrize(("indices", "overlap"), OVERLAPS.values(), ids=OVERLAPS)
def test_sites_in_one_leaf(indices: tuple[str | None, str | None], overlap: bool) -> None:
    """Two sites may share a leaf, but no element of it."""
    leaf = ones((12, 8), np.float32)
    rules = tuple(
        Rule(site, "w", None if index is None else "... -> ...", index)
        for site, index in zip("ab", indices, strict=True)
    )
    layout = Layout("mine", rules)
    updates: dict[str, Update] = {}
    for site, rule in zip("ab", rules, strict=True):
        place = rule.place(site)
        assert place is not None
        updates[site] = Replace(zeros(place.shape(leaf.shape)))
    try:
        out = jaxmix.compose({"w": leaf}, [Adapter(updates)], layout=layout)["w"]
    except LayoutError as error:
        assert overlap and str(error) == (
            "leaves claimed by several sites:\n  w: a's weight and b's weight\nFix the layout's "
            "rules: each site needs a leaf, or an index into one, of its own."
        )
    else:
        blank = sum(np.size(u.weight) for u in updates.values() if isinstance(u, Replace))
        assert not overlap and int((np.asarray(out) == 0).sum()) == blank


def test_weight_and_bias_in_one_leaf() -> None:
    """A weight and a bias in one leaf are an error, for one site or two."""
    update = Replace(zeros(3), zeros(3))
    layout = Layout("mine", (Rule("a", "w"), Rule("a", "w", part="bias")))
    with pytest.raises(
        LayoutError,
        match=full_text(
            "leaves claimed by several sites:\n"
            "  w: a's weight and a's bias\n"
            "Fix the layout's rules: each site needs a leaf, or an index "
            "into one, of its own."
        ),
    ):
        jaxmix.compose({"w": ones(3, np.float32)}, [Adapter({"a": update})], layout=layout)


def test_many_sites_in_one_leaf_are_checked_quickly() -> None:
    """6000 sites of layers and experts are checked without comparing every pair."""
    places = [Place("w", index=f"{i}, {j}") for i in range(60) for j in range(100)]
    tree = Tree.of({"w": zeros((60, 100, 2))})
    sites = [Site(f"s{i}", (), place) for i, place in enumerate(places)]
    assert list(overlaps(tree, sites)) == []
    with_duplicate = [*sites, Site("again", (), Place("w", index="59, -1"))]
    assert list(overlaps(tree, with_duplicate)) == ["w: s5999's weight and again's weight"]


# ---------------------------------------------------------------- leaves that cannot be updated


@register_dataclass
@dataclass(frozen=True)
class Quantized:
    """A quantized leaf with qwix's fields."""

    qvalue: Any
    scale: Any


def test_quantized_leaves() -> None:
    """Quantized leaves, and leaves of other dtypes than floats, must be dequantized or cast."""
    integers = LEAF.astype(np.int8)
    for params in (
        {"a": {"kernel": {"qvalue": integers.T, "scale": ones(6)}}},
        {"a": {"kernel": Quantized(integers.T, ones(6))}},
    ):
        with pytest.raises(
            LayoutError,
            match=full_text(
                "1 site of the adapters can't be placed in the params by the layout 'names':\n"
                "  a: its weight is not a single array but has parts (a.kernel.qvalue, "
                "a.kernel.scale). Quantized weights must be dequantized first\n"
                f"{ANOTHER_MODEL} No name map matches all of them to leaves."
            ),
        ):
            jaxmix.compose(params, lora_at("a"))
    for dtype in (jnp.int8, jnp.float8_e4m3fn, jnp.int4, jnp.bool_, jnp.complex64, jnp.uint32):
        with pytest.raises(
            LayoutError,
            match=full_text(
                "leaves that can't take an adapter, expected arrays of floats:\n"
                f"  a: a.weight has dtype {jnp.dtype(dtype)}; dequantize or cast it first"
            ),
        ):
            jaxmix.compose({"a.weight": jnp.asarray(LEAF).astype(dtype)}, lora_at("a"))


def test_float64_leaves_without_x64() -> None:
    """A float64 leaf without x64 is an error; JAX would convert it to float32 silently."""
    with pytest.raises(
        LayoutError,
        match=full_text(
            "leaves that can't take an adapter, expected arrays of floats:\n"
            "  a: a.weight has dtype float64, which needs jax.config.update('jax_enable_x64', "
            "True), or cast it"
        ),
    ):
        jaxmix.compose({"a.weight": LEAF.astype(np.float64)}, lora_at("a"))


def test_leaves_that_are_not_arrays() -> None:
    """Torch tensors, shapes and strings as leaves are listed in one error."""

    class Tensor:
        shape, dtype = (6, 8), "torch.float32"

    params = {
        "a.weight": Tensor(),
        "b.weight": jax.ShapeDtypeStruct((6, 8), np.float32),
        "c.weight": "text",
        "d.weight": np.float32(1),
    }
    with pytest.raises(
        LayoutError,
        match=full_text(
            "leaves that can't take an adapter, expected arrays of "
            "floats:\n"
            "  a: a.weight is a Tensor\n"
            "  b: b.weight is a ShapeDtypeStruct\n"
            "  c: c.weight is a str\n"
            "  d: d.weight is a float32"
        ),
    ) as caught:
        jaxmix.compose(params, lora_at(*"abcd"))
    kinds = {"a": "Tensor", "b": "ShapeDtypeStruct", "c": "str", "d": "float32"}
    for site, kind in kinds.items():
        assert f"\n  {site}: {site}.weight is a {kind}" in str(caught.value)


def test_other_leaves_may_be_anything() -> None:
    """Leaves that no adapter touches are not checked."""
    function = jax.nn.relu
    params = {"a.weight": LEAF, "activation": function, "steps": 3, "none": None, "name": "x"}
    out = jaxmix.compose(params, lora_at("a"))
    assert out["activation"] is function and (out["steps"], out["name"]) == (3, "x")


def test_factors_that_do_not_fit_are_listed() -> None:
    """All misfits are listed with found and expected shapes."""
    params = {
        "a.weight": LEAF,
        "b.weight": LEAF,
        "c.weight": LEAF,
        "n.bias": ones(3, np.float32),
    }
    adapters = [
        Adapter(
            {
                "a": draw_update("LoRA", Module("linear", (6, 7)), 0),
                "b": draw_update("LoRA", Module("linear", (6, 8)), 0),
                "c": Replace(ones((8, 6))),
                "n": Replace(bias=ones(4)),
            }
        )
    ]
    with pytest.raises(
        ShapeError,
        match=full_text(
            "factors that do not fit the params:\n"
            "  a: lora_A has shape (2, 7), expected (2, 8) from weight "
            "(6, 8)\n"
            "  c: saved weight has shape (8, 6), expected (6, 8)\n"
            "  n: saved bias has shape (4,), expected (3,)\n"
            "Was the adapter trained on another model, or on a base of "
            "another size? If it was trained with more tokens, resize "
            "these leaves of the params first, or merge into the "
            "checkpoint with jaxmix.merge_checkpoint(..., resize=True)."
        ),
    ) as caught:
        jaxmix.compose(params, adapters)
    message = str(caught.value)
    assert (
        "\n  a: lora_A has shape (" in message and "\n  c: saved weight has shape (8, 6)" in message
    )
    assert "\n  n: saved bias has shape (4,)" in message and "\n  b: " not in message
    assert message.endswith(
        "or on a base of another size? If it was trained with more tokens, resize these leaves of "
        "the params first, or merge into the checkpoint with jaxmix.merge_checkpoint(..., "
        "resize=True)."
    )
