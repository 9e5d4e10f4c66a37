"""`BaseModel`: modules by name, and errors for missing parts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxmix.converters.adapters.common.base_model import BaseModel, base_model
from jaxmix.errors import CheckpointError

from ...bases import save_base

WEIGHT, BIAS = np.arange(6.0).reshape(2, 3), np.ones(2)
AS_TORCH = {"model.proj.weight": WEIGHT, "model.proj.bias": BIAS, "head.weight": WEIGHT}
AS_FLAX = {
    "params": {"model": {"proj": {"kernel": WEIGHT.T, "bias": BIAS}}, "head": {"kernel": WEIGHT.T}}
}


@pytest.mark.parametrize("params", [AS_TORCH, AS_FLAX], ids=["torch", "flax"])
def test_params_are_read_by_module(params: Any) -> None:
    """Modules are found with or without a prefix; axes, names and dtypes are PyTorch's."""
    model = base_model(params)
    assert base_model(model) is model and set(model.modules) == {"model.proj", "head"}
    for name in ("model.proj", "proj", "base.model.proj"):
        assert model.shape(name) == (2, 3)
        np.testing.assert_array_equal(model.weight(name), WEIGHT)
        np.testing.assert_array_equal(model.bias(name), BIAS)
        assert model.weight(name).dtype == model.bias(name).dtype == np.float64


def test_weights_of_a_folder_are_read_lazily(tmp_path: Path) -> None:
    """Weights are read only when they are needed."""
    model = base_model(save_base(tmp_path / "base"))
    assert model.shape("layers.0.q_proj") == (8, 6) == model.weight("layers.0.q_proj").shape
    assert model.bias("layers.0.q_proj").shape == (8,)


def refusal(model: BaseModel, part: str, module: str) -> str:
    """Returns the error's message."""
    with pytest.raises(CheckpointError) as caught:
        getattr(model, part)(module)
    return str(caught.value)


def test_missing_parts_are_refused(tmp_path: Path) -> None:
    """The error names the module, the problem and the remedy."""
    params, folder = base_model(AS_TORCH), base_model(save_base(tmp_path / "base"))
    described = "the params given as base"
    end = "Was the adapter trained on another model?"
    for model, name, description in (
        (params, "head", described),
        (folder, "lm_head", str(tmp_path / "base")),
    ):
        text = refusal(model, "bias", name)
        assert (
            text == f"the adapter needs the bias of {name}, but it has none in {description}. {end}"
        )
    for part in ("weight", "bias", "shape"):
        assert refusal(params, part, "other").startswith(
            f"the adapter needs the weight of other, but {described} has no such module; the "
            "nearest are "
        )
        text = refusal(folder, part, "q_proj")
        assert text == (
            f"the adapter needs the weight of q_proj, but several modules of {tmp_path / 'base'} "
            f"match: model.layers.0.q_proj, model.layers.1.q_proj. {end}"
        )


def test_list_of_names_is_enough_without_weights() -> None:
    """A list of names is enough if no weight is read."""
    model = base_model(["proj", "head"])
    assert model.modules == ("proj", "head")
    for part in ("weight", "shape"):
        assert refusal(model, part, "proj") == (
            "the adapter needs the weight of proj, but base is a list of module "
            "names. Pass the params, or the base's folder."
        )
    assert "the bias of proj, but it has none in a list of module names." in refusal(
        model, "bias", "proj"
    )


@pytest.mark.parametrize("base", [{}, {"a": {"bias": np.ones(2)}}, [], [1, 2], 3], ids=str)
def test_invalid_bases_are_refused(base: Any) -> None:
    """Params without weights and empty params are refused."""
    with pytest.raises(CheckpointError) as caught:
        base_model(base)
    assert str(caught.value) == (
        f"base is a {type(base).__name__} without weights that have PyTorch's names, expected "
        "params, a Hugging Face folder, or a list of module names."
    )
