"""qwix's quantized leaves are recognized, and quantized again after a change."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import jaxmix
from jaxmix.errors import LayoutError
from jaxmix.placement.quantized import dequantized, is_quantized, requantized

from ..uncompiled import uncompiled


def normal(*shape: int) -> Any:
    return jnp.asarray(np.random.default_rng(shape).normal(size=shape), jnp.float32)


def test_requantizing_another_tree_is_refused() -> None:
    with pytest.raises(LayoutError) as caught:
        jaxmix.requantized({"a": normal(2, 2)}, {"a": normal(2, 2), "b": normal(2, 2)})
    assert str(caught.value) == (
        "requantized: leaves that only one of the two trees has:\n  b\n"
        "Pass the base from which the params were composed."
    )


def test_only_qwix_arrays_are_quantized() -> None:
    """A class of the same name from elsewhere is not one; other leaves stay the same objects."""

    class QArray:
        pass

    for leaf in (QArray(), np.ones(2), None, "text"):
        assert not is_quantized(leaf) and dequantized(leaf) is leaf


def test_zeros_have_no_error() -> None:
    """Leaves that the base does not quantize, or that are still quantized, stay as they are."""
    qwix = pytest.importorskip("qwix", reason="qwix is not installed")
    base: Any = qwix.quantize(jnp.ones((4, 8)), jnp.int8, channelwise_axes=[1])
    like = {"a": base, "b": base, "c": jnp.ones(2)}
    params = {"a": jnp.zeros((4, 8)), "b": base, "c": jnp.full(2, 3.0)}
    with uncompiled():
        out, errors = requantized(params, like)
    assert errors == {"a": 0.0} and is_quantized(out["a"]) and out["a"].qtype == base.qtype
    np.testing.assert_array_equal(dequantized(out["a"]), np.zeros((4, 8)))
    assert out["b"] is base and out["c"] is params["c"]
