"""mlx-lm's folders: configs, orientations, and the exact errors."""

import json
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import jaxmix
from jaxmix.errors import CheckpointError, ShapeError, UnsupportedError

from .formats.files import drawn
from .peft.folders import refused

SITE = "model.layers.0.self_attn.q_proj"


def folder(tmp_path, tensors: dict[str, np.ndarray] | None = None, **config: Any):
    """Writes a folder as mlx-lm's trainer does."""
    contents = {f"{SITE}.lora_a": drawn(4, 2), f"{SITE}.lora_b": drawn(2, 6)}
    fields = {"fine_tune_type": "lora", "lora_parameters": {"rank": 2, "scale": 20.0}, **config}
    save_file(contents if tensors is None else tensors, tmp_path / "adapters.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(fields))
    return tmp_path


def test_scale_is_not_divided_by_the_rank(tmp_path):
    """The config's scale is used as it is; the `scale` option overrides it."""
    update: Any = jaxmix.load(folder(tmp_path)).updates[SITE]
    assert update.scale == 20.0
    assert np.array_equal(update.a, drawn(4, 2).T) and np.array_equal(update.b, drawn(2, 6).T)
    update = jaxmix.load(tmp_path, scale=3.0).updates[SITE]
    assert update.scale == 3.0


def test_config_with_alpha_is_ambiguous(tmp_path):
    """Versions of mlx-lm read an alpha differently, so the user must state the scale."""
    path = folder(tmp_path, lora_parameters={"rank": 2, "alpha": 16, "scale": 10.0})
    assert refused(UnsupportedError, path) == (
        f"{path / 'adapter_config.json'}: lora_parameters has alpha = 16, rank = 2 "
        f"and scale = 10.0. Old versions of mlx-lm multiplied the scale by alpha / "
        f"rank, later ones ignore alpha. Pass the scale that was used: load(path, "
        f"scale=…)."
    )
    update: Any = jaxmix.load(path, scale=80.0).updates[SITE]
    assert update.scale == 80.0
    path = folder(tmp_path, lora_parameters={"rank": 2, "alpha": 2, "scale": 10.0})
    update = jaxmix.load(path).updates[SITE]
    assert update.scale == 10.0


def test_embedding_is_recognised_by_base_or_name(tmp_path):
    """An embedding's factors are in the weight's own axis order."""
    tensors = {"model.embed_tokens.lora_a": drawn(9, 2), "model.embed_tokens.lora_b": drawn(2, 4)}
    path = folder(tmp_path, tensors)
    update: Any = jaxmix.load(path).updates["model.embed_tokens"]
    assert update.embedding and update.b.shape == (9, 2)
    tensors = {"model.table.lora_a": drawn(9, 2), "model.table.lora_b": drawn(2, 4)}
    path = folder(tmp_path, tensors)
    for shape, is_embedding in (((9, 4), True), ((4, 9), False)):
        base = {"model.table.weight": drawn(*shape)}
        update = jaxmix.load(path, base=base).updates["model.table"]
        assert update.embedding == is_embedding and update.misfit(shape) is None


@pytest.mark.parametrize(
    ("config", "kind", "message"),
    [
        (
            {"fine_tune_type": "qlora"},
            UnsupportedError,
            "fine_tune_type is 'qlora', expected",
        ),
        ({"lora_parameters": None}, CheckpointError, "lora_parameters is None, expected an object"),
        (
            {"lora_parameters": {"scale": "2"}},
            CheckpointError,
            "lora_parameters is {'scale': '2'}, expected an object with a number as scale. Pass",
        ),
    ],
)
def test_invalid_configs_are_refused(config, kind, message, tmp_path):
    """The error names the field and what was expected."""
    assert message in refused(kind, folder(tmp_path, **config))


def test_config_must_be_a_json_object(tmp_path):
    """Invalid JSON, a list and undecodable bytes are refused."""
    path = folder(tmp_path)
    for text in (b"{", b"[]"):
        (path / "adapter_config.json").write_bytes(text)
        assert "is not a JSON object, expected mlx-lm's config." in refused(CheckpointError, path)
    (path / "adapter_config.json").write_bytes(b"\xff")
    assert "can't be read: 'utf-8' codec can't decode" in refused(CheckpointError, path)


def test_unknown_keys_are_listed(tmp_path):
    """Unknown keys are listed with dtype and shape."""
    tensors = {f"{SITE}.lora_a": drawn(4, 2), f"{SITE}.m": drawn(6), "lora_b": drawn(2)}
    message = refused(CheckpointError, folder(tmp_path, tensors))
    assert f"{SITE}.m: float32 (6,)" in message and "lora_b: float32 (2,)" in message
    assert "Expected floats under <module>.<one of lora_a, lora_b>." in message


@pytest.mark.parametrize(
    ("shapes", "config", "kind", "message"),
    [
        ({"lora_a": (4, 2)}, {}, CheckpointError, "lora_b is missing; found lora_a (4, 2)"),
        (
            {"lora_a": (4, 2), "lora_b": (3, 6)},
            {},
            ShapeError,
            "expected lora_a (in, r) and lora_b (r, out)",
        ),
        (
            {"lora_a": (5, 2, 4), "lora_b": (5, 6, 2)},
            {},
            UnsupportedError,
            "of experts, which jaxmix does not read yet",
        ),
        (
            {"lora_a": (4, 2), "lora_b": (2, 6)},
            {"fine_tune_type": "dora"},
            CheckpointError,
            "m is missing; found lora_a (4, 2), lora_b (2, 6)",
        ),
        (
            {"lora_a": (4, 2), "lora_b": (2, 6), "m": (4,)},
            {"fine_tune_type": "dora"},
            ShapeError,
            "expected m (6,)",
        ),
        (
            {"weight": (2, 3, 4)},
            {"fine_tune_type": "full"},
            UnsupportedError,
            "mlx stores the axes of convolutions in another order",
        ),
        ({"bias": (2, 1)}, {"fine_tune_type": "full"}, ShapeError, "expected bias (out,)"),
    ],
)
def test_invalid_factors_are_reported(shapes, config, kind, message, tmp_path):
    """The error names the site, what was found, and what was expected."""
    tensors = {f"{SITE}.{name}": drawn(*shape) for name, shape in shapes.items()}
    error = refused(kind, folder(tmp_path, tensors, **config))
    assert f"\n  {SITE}: " in error and message in error


def test_levanter_folder_is_read_as_peft(tmp_path):
    """Levanter's PEFT config has few fields and no version."""
    config = {
        "base_model_name_or_path": "gpt2",
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_alpha": 8.0,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": 2,
        "target_modules": None,
        "task_type": "CAUSAL_LM",
    }
    prefix = "base_model.model.transformer.h.0.attn.c_attn"
    tensors = {f"{prefix}.lora_A.weight": drawn(2, 4), f"{prefix}.lora_B.weight": drawn(6, 2)}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    update: Any = jaxmix.load(tmp_path).updates["transformer.h.0.attn.c_attn"]
    assert update.scale == 4.0 and update.a.shape == (2, 4)
