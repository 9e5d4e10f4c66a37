"""Attached leaves used as arrays outside of `factored`."""

import copy
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxmix import Adapter, attach, factored
from jaxmix.errors import JaxmixError
from jaxmix.families import LoRA

from ..messages import full_text

ADAPTER = Adapter({"proj": LoRA(jnp.ones((1, 3)), jnp.ones((2, 1)), 1.0)}, name="lora")
LEAF = attach({"proj.weight": jnp.zeros((2, 3))}, ADAPTER)["proj.weight"]


def refusal(shape: str) -> str:
    """Returns the whole error for a leaf of this shape."""
    return full_text(
        f"Factored {shape} float32: LoRA rank 1 has adapters attached, so it is no array. Run the "
        "function that uses it through jaxmix.factored: factored(fn)(params, x) in the place of "
        "fn(params, x); or merge the adapters into the params with jaxmix.compose."
    )


@pytest.mark.parametrize(
    "use",
    [
        lambda leaf: leaf.T,
        lambda leaf: leaf.astype(jnp.bfloat16),
        lambda leaf: leaf[0],
        lambda leaf: 2 * leaf,
        lambda leaf: jnp.ones((3, 3)) @ leaf,
        lambda leaf: np.ones((3, 3)) @ leaf,
        lambda leaf: leaf @ jnp.ones(3),
        lambda leaf: jnp.dot(leaf, jnp.ones(3)),
        jnp.asarray,
        np.asarray,
        lambda leaf: jax.jit(jnp.sum)(leaf),
    ],
)
def test_attached_leaf_is_not_an_array(use: Callable[[Any], Any]) -> None:
    """Using an attached leaf as an array raises an error that names `factored`."""
    with pytest.raises(JaxmixError, match=refusal("(2, 3)")):
        use(LEAF)


def test_attached_model_needs_factored() -> None:
    """Calling an attached model without `factored` raises an error."""

    class Model(nnx.Module):
        def __init__(self) -> None:
            self.proj = nnx.Linear(3, 2, rngs=nnx.Rngs(0))

        def __call__(self, x: Any) -> Any:
            return self.proj(x)

    model = attach(Model(), ADAPTER)
    with pytest.raises(JaxmixError, match=refusal("(3, 2)")):
        model(jnp.ones((1, 3)))
    assert factored(lambda model, x: model(x))(model, jnp.ones((1, 3))).shape == (1, 2)


def test_attached_leaf_supports_hasattr() -> None:
    """`hasattr` works on an attached leaf."""
    assert not hasattr(LEAF, "T") and not hasattr(LEAF, "__len__") and LEAF.shape == (2, 3)


def test_attached_leaf_can_be_copied() -> None:
    """Protocols such as copying ask for attributes that do not exist, which is no misuse."""
    assert copy.copy(LEAF).base is LEAF.base
    assert copy.deepcopy(LEAF).shape == LEAF.shape
    with pytest.raises(AttributeError, match=full_text("__deepcopy__")) as caught:
        _ = LEAF.__deepcopy__
    assert not isinstance(caught.value, JaxmixError)
