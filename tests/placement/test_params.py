"""Arguments that can't be a tree of weights."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix import Adapter, attach, compose
from jaxmix.errors import LayoutError
from jaxmix.families import LoRA
from jaxmix.placement.params import check_no_path, check_tree

from ..messages import full_text

ADAPTER = Adapter({"proj": LoRA(jnp.ones((1, 3)), jnp.ones((2, 1)), 1.0)}, name="lora")


@pytest.mark.parametrize("adapters", [[ADAPTER], []])
@pytest.mark.parametrize("function", [compose, attach])
@pytest.mark.parametrize("params", ["try/base", Path("try/base")])
def test_path_in_place_of_params_is_refused(function, params, adapters):
    """The error says how to load params."""
    with pytest.raises(LayoutError) as caught:
        function(params, adapters)
    assert str(caught.value) == (
        f"the params are the path {params!r}, expected a pytree of weights: a dict of arrays, an "
        "nnx.Module or its state, an Equinox module. Read a checkpoint with "
        "jaxmix.models.read_tensors(folder), or merge it on disk with "
        "jaxmix.merge_checkpoint(folder, adapters, out)."
    )


@pytest.mark.parametrize("params", [None, print, 3])
def test_params_that_are_not_a_tree_are_refused(params):
    """Params without leaves of arrays are refused."""
    with pytest.raises(
        LayoutError,
        match=full_text(
            f"the params are {params}, expected a pytree of weights: a dict of arrays, an "
            "nnx.Module or its state, an Equinox module. Pass the model's weights."
        ),
    ):
        compose(params, [ADAPTER])


@pytest.mark.parametrize("check", [check_no_path, check_tree])
def test_path_of_bytes_is_refused(check: Any) -> None:
    with pytest.raises(
        LayoutError,
        match=full_text(
            "the params are the path b'base', expected a pytree of weights: a dict of arrays, an "
            "nnx.Module or its state, an Equinox module. Read a checkpoint with "
            "jaxmix.models.read_tensors(folder), or merge it on disk with "
            "jaxmix.merge_checkpoint(folder, adapters, out)."
        ),
    ):
        check(b"base")


def test_long_representation_is_cut() -> None:
    """On one line, however many the object's own has."""

    class Long:
        def __repr__(self) -> str:
            return "first\n  second " + 100 * "x"

    with pytest.raises(LayoutError) as caught:
        check_tree(Long())
    assert str(caught.value).startswith(f"the params are first second {67 * 'x'}, expected")


@pytest.mark.parametrize(
    "params",
    [{}, [], {"a": None}, np.ones(2), jnp.ones(2), jax.ShapeDtypeStruct((2,), np.float32)],
    ids=["empty dict", "empty list", "none", "numpy", "jax", "shape"],
)
def test_trees_and_single_arrays_are_accepted(params: Any) -> None:
    """An empty tree is one: the error about its sites says more."""
    check_tree(params)
