"""Folders of diffusers as checkpoints: components, variants, pipelines."""

import json
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxmix.converters.adapters.common.base_model import base_model
from jaxmix.converters.checkpoints.conv1d import conv1d_pattern
from jaxmix.converters.checkpoints.huggingface import read_checkpoint
from jaxmix.converters.checkpoints.quantization import find_packed, quantization_method
from jaxmix.converters.checkpoints.sharded_reading import load_params
from jaxmix.converters.files.wrong_inputs import is_model
from jaxmix.errors import CheckpointError
from jaxmix.models.checkpoint import read_tensors

from ...messages import full_text
from ..pipelines import save_pipeline, save_weights, tensors_of


@pytest.mark.parametrize(("shards", "variant"), [(1, ""), (2, ""), (1, "fp16"), (2, "bf16")])
def test_component_folder(shards: int, variant: str, tmp_path: Path) -> None:
    """A component is read like a folder of transformers, whatever the names of its files."""
    base = save_pipeline(tmp_path / "base", "wan", shards=shards, variant=variant)
    folder, tensors = base / "transformer", tensors_of(base)
    checkpoint = read_checkpoint(folder)
    part = f".{variant}" if variant else ""
    index = f"diffusion_pytorch_model.safetensors.index{part}.json" if shards > 1 else None
    assert checkpoint.index == index and len(checkpoint.shards) == shards
    right = {n.removeprefix("transformer."): x for n, x in tensors.items() if "transformer." in n}
    read_back = read_tensors(folder)
    assert read_back.keys() == right.keys() and not checkpoint.components and is_model(folder)
    assert all((read_back[name] == right[name]).all() for name in right)
    assert conv1d_pattern(checkpoint) == ""


def test_older_name_of_an_index(tmp_path: Path) -> None:
    """Older versions of diffusers put the variant in another place of the name."""
    save_weights(tmp_path, {"a": np.ones(1), "b": np.ones(2)}, "model.safetensors", shards=2)
    index = tmp_path / "model.safetensors.index.json"
    index.rename(tmp_path / "model.fp16.safetensors.index.json")
    assert read_checkpoint(tmp_path).index == "model.fp16.safetensors.index.json"


def test_precedence(tmp_path: Path) -> None:
    """Weights without a variant take precedence; among these, diffusers prefers the index."""
    first, second = {"a": np.ones(1), "b": np.ones(2)}, {"a": np.zeros(1), "b": np.zeros(2)}
    file = "diffusion_pytorch_model.safetensors"
    save_weights(tmp_path, second, file, variant="fp16")
    assert read_tensors(tmp_path)["a"] == 0
    save_weights(tmp_path, first, file)
    assert read_tensors(tmp_path)["a"] == 1
    save_weights(tmp_path, second, file, shards=2)
    assert read_tensors(tmp_path)["a"] == 0


def test_several_variants_are_ambiguous(tmp_path: Path) -> None:
    """The intended variant is unknown."""
    for variant in ("fp16", "non_ema"):
        save_weights(tmp_path, {"a": np.ones(1)}, "model.safetensors", variant=variant)
    with pytest.raises(CheckpointError) as refused:
        read_checkpoint(tmp_path)
    assert str(refused.value) == (
        f"{tmp_path} has several variants of its weights: model.fp16.safetensors, "
        "model.non_ema.safetensors. Choose one (variant='…'), or keep only one of them in the "
        "folder."
    )


def test_pipeline_is_read_with_its_components(tmp_path: Path) -> None:
    """Its tensors have the component in their names; its files are those of the components."""
    base = save_pipeline(tmp_path / "base", "flux", shards=2)
    checkpoint, tensors = read_checkpoint(base), tensors_of(base)
    assert list(checkpoint.components) == ["text_encoder", "text_encoder_2", "transformer"]
    assert checkpoint.tensors.keys() == tensors.keys() and is_model(base)
    for name, tensor in checkpoint.tensors.items():
        assert (tensor.read() == tensors[name]).all()
    assert all((base / shard.name).is_file() for shard in checkpoint.shards)


def test_load_params(tmp_path: Path) -> None:
    """A pipeline and a sharded component are loaded onto devices."""
    base = save_pipeline(tmp_path / "base", "wan", shards=3)
    tensors, mesh = tensors_of(base), jax.make_mesh((1,), ("x",))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    name = "transformer.blocks.0.attn1.to_q.weight"
    pipeline = load_params(base, {name: rows})
    component = load_params(base / "transformer", names=[name.removeprefix("transformer.")])
    assert pipeline.keys() == tensors.keys() and pipeline[name].sharding == rows
    assert (np.asarray(pipeline[name]) == tensors[name]).all()
    assert (np.asarray(next(iter(component.values()))) == tensors[name]).all()


def test_packed_component(tmp_path: Path) -> None:
    """Packed weights have the component in their names, and the method of its config.json."""
    base = save_pipeline(tmp_path / "base", "sd")
    file = base / "unet/diffusion_pytorch_model.safetensors"
    fp8 = {n: x.astype(ml_dtypes.float8_e4m3fn) for n, x in load_file(file).items()}
    save_file(fp8, file)
    checkpoint = read_checkpoint(base)
    readout = find_packed(checkpoint)
    assert readout.packed.keys() == {f"unet.{name}" for name in fp8} <= readout.parts
    assert quantization_method(checkpoint) is None
    packed = readout.packed["unet.conv_in.weight"]
    assert packed.name == "unet.conv_in.weight"
    assert (packed.read() == fp8["conv_in.weight"].astype(np.float32)).all()
    loaded = load_params(base, dequantize=True)["unet.conv_in.weight"]
    assert loaded.dtype == ml_dtypes.bfloat16
    assert (base_model(base).weight("unet.conv_in") == packed.read()).all()
    config = base / "text_encoder/config.json"
    stated = {"quantization_config": {"quant_method": "hqq"}}
    config.write_text(json.dumps(json.loads(config.read_text()) | stated))
    tensors = load_file(base / "text_encoder/model.safetensors")
    tensors["a.weight"] = np.ones(2, np.int8)
    save_file(tensors, base / "text_encoder/model.safetensors")
    checkpoint = read_checkpoint(base)
    assert quantization_method(checkpoint) == "hqq"
    assert find_packed(checkpoint).problems == [
        "text_encoder.a.weight in model.safetensors: I8 (2,)"
    ]


def test_base_model_of_a_pipeline(tmp_path: Path) -> None:
    """Weights, biases and orientations by component."""
    base = save_pipeline(tmp_path / "base", "sdxl")
    model, tensors = base_model(base), tensors_of(base)
    assert {f"{name}.weight" for name in model.modules} == {
        name for name in tensors if name.endswith(".weight")
    }
    name = "text_encoder_2.text_model.encoder.layers.0.mlp.fc1"
    assert (model.weight(name) == tensors[f"{name}.weight"]).all()
    assert (model.bias(name) == tensors[f"{name}.bias"]).all()
    assert model.shape("unet.conv_in") == (8, 4, 3, 3)
    assert model.is_conv1d("unet.conv_in") is False


def test_pipeline_without_weights(tmp_path: Path) -> None:
    """For a pipeline of .bin files, the error states the remedy."""
    base = save_pipeline(tmp_path / "base", "sd")
    for file in sorted(base.rglob("*.safetensors")):
        file.rename(file.with_suffix(".bin"))
    with pytest.raises(CheckpointError) as refused:
        read_checkpoint(base)
    assert str(refused.value) == (
        f"{base} is a pipeline of which no component has weights in safetensors; found the "
        "components scheduler, text_encoder, unet. Save it with diffusers' save_pretrained."
    )


def test_damaged_pipelines(tmp_path: Path) -> None:
    """The index must be an object; a component outside the folder is not one."""
    base = save_pipeline(tmp_path / "base", "sd")
    index = json.loads((base / "model_index.json").read_text())
    outside = {"../base": ["diffusers", "X"], "_unet": ["diffusers", "X"], "n": 3}
    (base / "model_index.json").write_text(json.dumps(outside | index))
    assert list(read_checkpoint(base).components) == ["text_encoder", "unet"]
    (base / "model_index.json").write_text("[]")
    with pytest.raises(
        CheckpointError,
        match=full_text(f"{tmp_path}/base/model_index.json holds a list, expected a JSON object."),
    ):
        read_checkpoint(base)
