"""The axis order of square experts: from a config, the model's class, or another parameter."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jaxmix
from jaxmix.errors import CheckpointError, UnsupportedError

from ....messages import full_text
from .folders import Form, save

EXPERTS = "model.layers.0.mlp.experts"
LIBRARY = "transformers.models.{0}.modeling_{0}"
RANDOM = np.random.default_rng(0)


def adapter(folder: Path, *names: str, **more: Any) -> Path:
    """A LoRA of rank 2 of square parameters (3, 4, 4) of experts."""
    tensors = {}
    for depth, _ in enumerate(names):
        path = f"base_model.model.{EXPERTS}" + ".base_layer" * depth
        tensors[f"{path}.lora_A.weight"] = RANDOM.normal(size=(6, 4)).astype(np.float32)
        tensors[f"{path}.lora_B.weight"] = RANDOM.normal(size=(4, 6)).astype(np.float32)
    form = Form("LORA", {"r": 2, "lora_alpha": 3}, {})
    targets: Any = [f"mlp.experts.{name}" for name in names]
    return save(folder, form, tensors, target_parameters=targets, **more)


def base(folder: Path, config: dict[str, Any] | None, **shapes: tuple[int, ...]) -> Path:
    """A checkpoint of parameters of experts."""
    folder.mkdir()
    tensors = {f"{EXPERTS}.{name}": np.ones(shape, np.float32) for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def is_in_first(folder: Path, base: Any) -> bool:
    """The order that an adapter was read with."""
    update: Any = jaxmix.load(folder, base=base).updates[f"{EXPERTS}.down_proj"]
    return update.in_first


@pytest.mark.parametrize(
    ("model_type", "expected"), [("gpt_oss", True), ("aria_text", True), ("mixtral", False)]
)
def test_model_determines_the_order(model_type: str, expected: bool, tmp_path: Path) -> None:
    """The base's config states the model, or PEFT has written its class to the adapter's."""
    folder = adapter(tmp_path / "plain", "down_proj")
    model = base(tmp_path / "base", {"model_type": model_type}, down_proj=(3, 4, 4))
    assert is_in_first(folder, model) == expected
    mapping: Any = {
        "base_model_class": "AnyForCausalLM",
        "parent_library": LIBRARY.format(model_type.removesuffix("_text")),
    }
    folder = adapter(tmp_path / "class", "down_proj", auto_mapping=mapping)
    leaves = {f"{EXPERTS}.down_proj": np.ones((3, 4, 4), np.float32)}
    assert is_in_first(folder, leaves) == expected


def test_class_with_any_text_model_does_not_determine_the_order(tmp_path: Path) -> None:
    """LLaVA has the text model that its config names; outside it, the class is the model's own."""
    mapping: Any = {"base_model_class": "Any", "parent_library": LIBRARY.format("llava")}
    folder = adapter(tmp_path, "down_proj", auto_mapping=mapping)
    assert not is_in_first(folder, {f"{EXPERTS}.down_proj": np.ones((3, 4, 4), np.float32)})
    file = folder / "adapter_model.safetensors"
    site = EXPERTS.replace("model.", "model.language_model.")
    save_file({k.replace(EXPERTS, site): t for k, t in load_file(file).items()}, file)
    with pytest.raises(
        UnsupportedError,
        match=full_text(
            f"{tmp_path}/adapter_model.safetensors: factors that are not a "
            "valid LORA update:\n"
            "  model.language_model.layers.0.mlp.experts.down_proj: the "
            "experts' matrices are square, (4, 4), and neither the file "
            "nor the base states whether they are stored as (out, in) or "
            "(in, out). Pass the base's folder with its config.json\n"
            "Was the file edited, or saved before the shards of its "
            "factors were gathered?"
        ),
    ):
        jaxmix.load(folder, base={f"{site}.down_proj": np.ones((3, 4, 4), np.float32)})


@pytest.mark.parametrize(("shape", "expected"), [((3, 4, 8), True), ((3, 8, 4), False)])
def test_bias_determines_the_order(shape: tuple[int, ...], expected: bool, tmp_path: Path) -> None:
    """The bias of another parameter has as many numbers as that has outputs."""
    folder = adapter(tmp_path / "adapter", "down_proj")
    leaves = {
        f"{EXPERTS}.down_proj": np.ones((3, 4, 4), np.float32),
        f"{EXPERTS}.gate_up_proj": np.ones(shape, np.float32),
    }
    message = full_text(
        f"{folder}/adapter_model.safetensors: factors that are not a valid LORA update:\n"
        f"  {EXPERTS}.down_proj: the experts' matrices are square, (4, 4), and neither the file "
        "nor the base states whether they are stored as (out, in) or (in, out). Pass the base's "
        "folder with its config.json\nWas the file edited, or saved before the shards of "
        "its factors were gathered?"
    )
    with pytest.raises(UnsupportedError, match=message):
        is_in_first(folder, leaves)
    leaves[f"{EXPERTS}.gate_up_proj_bias"] = np.ones((3, 8), np.float32)
    assert is_in_first(folder, leaves) == expected


@pytest.mark.parametrize(("model_type", "up_is_first"), [("mixtral", True), ("gpt_oss", False)])
def test_parameters_whose_shapes_are_each_other_transposed(
    model_type: str, up_is_first: bool, tmp_path: Path
) -> None:
    """Which wrapper belongs to which parameter follows from the order of the axes."""
    tensors = {}
    for path, (out, size) in (("", (5, 4)), (".base_layer", (4, 5))):
        key = f"base_model.model.{EXPERTS}{path}"
        tensors[f"{key}.lora_A.weight"] = np.ones((6, size), np.float32)
        tensors[f"{key}.lora_B.weight"] = np.ones((out, 6), np.float32)
    form = Form("LORA", {"r": 2, "lora_alpha": 3}, {})
    targets: Any = ["mlp.experts.up_proj", "mlp.experts.down_proj"]
    folder = save(tmp_path / "adapter", form, tensors, target_parameters=targets)
    shapes = {"up_proj": (3, 5, 4), "down_proj": (3, 4, 5)}
    message = full_text(
        f"{folder}: the factors at {EXPERTS} fit several of its parameters up_proj, down_proj with "
        "shapes [(3, 5, 4), (3, 4, 5)], and the file does not assign them. Pass the base as a flat "
        "dict in the model's own order, jaxmix.load(…, base={name: array for name, array in "
        "model.state_dict().items()}), or train them as separate adapters."
    )
    with pytest.raises(CheckpointError, match=message):
        jaxmix.load(folder, base=base(tmp_path / "unknown", None, **shapes))
    model = base(tmp_path / "base", {"model_type": model_type}, **shapes)
    updates: Any = jaxmix.load(folder, base=model).updates
    first = "up_proj" if up_is_first else "down_proj"
    assert updates[f"{EXPERTS}.{first}"].b.shape == (3, 5, 2)


def test_stacked_parameter_named_weight(tmp_path: Path) -> None:
    """JetMoE's experts are the weight of a module that is no layer."""
    site = "model.layers.0.mlp.input_linear"
    a = RANDOM.normal(size=(6, 4)).astype(np.float32)
    b = RANDOM.normal(size=(5, 6)).astype(np.float32)
    key = f"base_model.model.{site}"
    tensors = {f"{key}.lora_A.weight": a, f"{key}.lora_B.weight": b}
    targets: Any = ["mlp.input_linear.weight"]
    form = Form("LORA", {"r": 2, "lora_alpha": 3}, {})
    folder = save(tmp_path / "adapter", form, tensors, target_parameters=targets)
    weight = RANDOM.normal(size=(3, 5, 4)).astype(np.float32)
    model = tmp_path / "base"
    model.mkdir()
    save_file({f"{site}.weight": weight}, model / "model.safetensors")
    (model / "config.json").write_text(json.dumps({"model_type": "jetmoe"}))
    expected = weight + 1.5 * np.einsum("ore,eri->eoi", b.reshape(5, 2, 3), a.reshape(3, 2, 4))
    leaves = {f"{site}.weight": weight}
    composed = jaxmix.compose(leaves, jaxmix.load(folder, base=leaves))
    np.testing.assert_allclose(composed[f"{site}.weight"], expected, atol=1e-5)
    jaxmix.merge_checkpoint(model, jaxmix.load(folder, base=model), tmp_path / "out")
    merged = load_file(tmp_path / "out" / "model.safetensors")
    np.testing.assert_allclose(merged[f"{site}.weight"], expected, atol=1e-5)
