"""The model in a folder: modules by name, weights and biases when they are needed."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxmix.converters.adapters.common.base_folder import folder_model
from jaxmix.errors import CheckpointError

from ....messages import full_text

WEIGHT = np.arange(6, dtype=np.float32).reshape(3, 2)


def folder(place: Path, **config: object) -> Path:
    """Writes a model with a bias, a leaf without a module, a counter, and an eight-bit weight."""
    place.mkdir(parents=True)
    (place / "config.json").write_text(json.dumps(config))
    tensors = {
        "h.0.c_fc.weight": WEIGHT,
        "h.0.c_fc.bias": np.ones(2, np.float32),
        "wpe": WEIGHT,
        "h.0.steps": np.ones(3, np.int64),
        "h.0.packed.weight": np.ones((3, 2), np.int8),
    }
    save_file(tensors, place / "model.safetensors")
    return place


def test_modules_are_tensors_of_floats(tmp_path: Path) -> None:
    """A bias belongs to its module; the type of the model says which weights are (in, out)."""
    model = folder_model(folder(tmp_path / "base", model_type="gpt2"))
    assert sorted(model.modules) == ["h.0.c_fc", "h.0.packed", "wpe"]
    assert model.shape("h.0.c_fc") == (3, 2) and model.conv1d("h.0.c_fc") is True
    np.testing.assert_array_equal(model.read_weight("wpe"), WEIGHT)
    np.testing.assert_array_equal(model.read_bias("h.0.c_fc"), np.ones(2))  # pyright: ignore
    assert model.read_bias("wpe") is None


def test_unreadable_weight_is_known_by_name(tmp_path: Path) -> None:
    """Its name suffices for most adapters; reading it is an error."""
    base = folder(tmp_path / "base", quantization_config={"quant_method": "eetq"})
    message = (
        "the adapter needs the weight of h.0.packed, which can't be read from "
        f"{base}, with weights packed by eetq. Use the unquantized checkpoint."
    )
    with pytest.raises(CheckpointError, match=full_text(message)):
        folder_model(base).read_weight("h.0.packed")
