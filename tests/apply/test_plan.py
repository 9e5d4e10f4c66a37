"""Chains applied to one leaf: as passes and as one function, in every dtype and form."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix.apply import plan
from jaxmix.apply.plan import apply, cast, compiled_maps
from jaxmix.families import OFT, HiRA, LoHa, LoRA, Rebase, Replace
from jaxmix.families.base import Chain
from jaxmix.operators import Hadamard, LowRank
from jaxmix.placement.form import Form
from jaxmix.placement.place import Place

from ..compiling import COMPILED, timed_events
from ..uncompiled import uncompiled

RNG = np.random.default_rng(0)


def normal(*shape: int) -> Any:
    return RNG.normal(size=shape).astype(np.float32)


OUT, IN = 4, 6
LORA = LoRA(normal(2, IN), normal(OUT, 2), 0.5)
W = normal(OUT, IN)


def test_floats_are_cast_and_integers_stay() -> None:
    """Positions in a leaf must not be rounded."""
    tree = {"a": np.float64(0.1), "b": np.int32(7), "c": jnp.ones(2, jnp.bfloat16), "d": 0.5}
    out = cast(tree, jnp.float32)
    assert [out[name].dtype.name for name in "abcd"] == ["float32", "int32", *["float32"] * 2]
    assert out["b"] == 7


@pytest.mark.parametrize("by_pass", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_stacked_layer_changes_alone(
    dtype: str, by_pass: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By passes and by one function; the other layers keep every bit, and the dtype stays."""
    monkeypatch.setattr(plan, "_runs_by_pass", lambda leaf: by_pass)
    leaf = jnp.asarray(normal(3, IN, OUT)).astype(dtype)
    form = Form(place=Place("", "i o -> o i", "1"))
    with uncompiled():
        out = apply(leaf, ((2.0, LORA),), form)
    assert out.dtype == leaf.dtype
    np.testing.assert_array_equal(out[::2], leaf[::2])
    delta = np.asarray(LORA.b) @ np.asarray(LORA.a)
    expected = np.asarray(leaf, np.float32)[1].T + delta
    tolerance = 1e-5 if dtype == "float32" else 2.0**-7
    np.testing.assert_allclose(
        np.asarray(out, np.float32)[1].T, expected, rtol=tolerance, atol=1e-2
    )


def test_empty_chain_returns_the_leaf() -> None:
    leaf = jnp.asarray(W)
    assert apply(leaf, (), Form()) is leaf


def test_scaled_leaf_is_changed_by_the_scaled_shift() -> None:
    """A leaf that holds twice the weight."""
    with uncompiled():
        out = apply(jnp.asarray(2 * W), ((1.0, Replace(W[::-1])),), Form(scale=2.0))
    np.testing.assert_allclose(out, 2 * W[::-1], rtol=1e-6)


def test_new_strengths_and_layers_compile_nothing() -> None:
    """Strengths may be Python numbers or arrays of any dtype; the layer's number is traced."""
    leaf = jnp.asarray(normal(3, OUT, IN))

    def run(strength: Any, layer: int) -> None:
        apply(leaf, ((strength, LORA),), Form(place=Place("", index=f"{layer}")))

    run(0.5, 0)
    with timed_events() as events:
        run(0.25, 2)
        run(1, 1)
        run(jnp.float32(3), 0)
    assert events[COMPILED] == 0


def test_maps_read_the_base_that_earlier_updates_wrote() -> None:
    """And otherwise the base itself, whatever earlier updates did to the leaf."""
    leaf, other = jnp.asarray(W), normal(OUT, IN)
    hira = HiRA(LORA.a, LORA.b)
    product = np.asarray(LORA.b) @ np.asarray(LORA.a)
    with uncompiled():
        for first, read in ((Rebase(other), other), (OFT(normal(3, 1)), W)):
            chain: Chain = ((1.0, first), (1.0, hira))
            _, second = compiled_maps(leaf, None, chain, Form())
            np.testing.assert_allclose(second.shift.dense(), read * product, rtol=1e-5)


def test_maps_that_read_nothing_need_a_shape_only() -> None:
    """A small Hadamard product is one low rank there, a large one is not."""
    shape = jax.ShapeDtypeStruct((OUT, IN), jnp.bfloat16)
    for rank, kind in ((6, LowRank), (7, Hadamard)):
        b, a = normal(OUT, rank), normal(rank, IN)
        with uncompiled():
            (found,) = compiled_maps(shape, None, ((1.0, LoHa(b, a, b, a, 1.0)),), Form())
        assert isinstance(found.shift, kind)
        assert {leaf.dtype.name for leaf in jax.tree.leaves(found)} == {"float32"}
