"""fp8 files of image models: plain casts, and ComfyUI's scales and markers."""

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jaxmix
from jaxmix.converters.checkpoints.huggingface import read_checkpoint
from jaxmix.converters.checkpoints.quantization import find_packed
from jaxmix.converters.merging import merge_checkpoint
from jaxmix.errors import LayoutError

from ....messages import full_text

FP8 = ml_dtypes.float8_e4m3fn
NAME, KEY = "model.diffusion_model.blocks.0.qkv", "blocks.0.qkv"
SCALE = 0.3125


def weights(style: str) -> dict[str, np.ndarray]:
    """Returns an fp8 layer, with or without a scale, and a layer that is not packed."""
    rng = np.random.default_rng(0)
    tensors: dict[str, Any] = {
        f"{NAME}.weight": rng.normal(size=(12, 4)).astype(FP8),
        f"{NAME}.bias": rng.normal(size=12).astype(ml_dtypes.bfloat16),
        "model.diffusion_model.img_in.weight": rng.normal(size=(4, 3)).astype(ml_dtypes.bfloat16),
    }
    scale, half = np.asarray(SCALE, np.float32), np.asarray(0.5, np.float32)
    if style == "scaled":
        tensors |= {f"{NAME}.scale_weight": scale, f"{NAME}.scale_input": half}
        tensors["model.diffusion_model.scaled_fp8"] = np.zeros(2, FP8)
    if style == "float marker":
        tensors |= {f"{NAME}.scale_weight": scale.reshape(1)}
        tensors["scaled_fp8"] = np.zeros(0, np.float32)
    if style == "newer":
        marker = json.dumps({"format": "float8_e4m3fn", "full_precision_matrix_mult": True})
        tensors |= {f"{NAME}.weight_scale": scale, f"{NAME}.input_scale": half}
        tensors[f"{NAME}.comfy_quant"] = np.frombuffer(marker.encode(), np.uint8)
    if style == "16 bits":
        tensors[f"{NAME}.weight"] = tensors[f"{NAME}.weight"].astype(ml_dtypes.bfloat16)
        tensors |= {f"{NAME}.scale_weight": scale}
    return tensors


def adapter(file: Path, style: str) -> tuple[Path, np.ndarray]:
    """Returns a LoRA of rank 2 with underscores or dots in its names, and its effect."""
    rng = np.random.default_rng(1)
    down, up = rng.normal(size=(2, 4)), rng.normal(size=(12, 2))
    key = f"lora_unet_{KEY.replace('.', '_')}" if style == "kohya" else f"diffusion_model.{KEY}"
    tensors = {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
    save_file({name: x.astype(np.float32) for name, x in tensors.items()}, file)
    return file, up @ down


@pytest.mark.parametrize(
    ("packing", "style"),
    [
        ("plain", "kohya"),
        ("plain", "dotted"),
        ("scaled", "kohya"),
        ("float marker", "dotted"),
        ("newer", "kohya"),
        ("16 bits", "dotted"),
    ],
)
def test_fp8_files_are_dequantized(packing: str, style: str, tmp_path: Path) -> None:
    """With `dequantize` the scales are applied and removed, together with their markers."""
    base, tensors = tmp_path / "base.safetensors", weights(packing)
    metadata = {"format": "pt", "_quantization_metadata": '{"layers": {}}'}
    save_file(tensors, base, metadata=metadata)
    file, effect = adapter(tmp_path / "x.safetensors", style)
    lora = jaxmix.load(file, base=base)
    assert lora.parts[0].sites == (NAME,)
    out = tmp_path / "out.safetensors"
    dtype = "BF16" if packing == "16 bits" else "F8_E4M3"
    message = (
        f"{base}: adapters can't be merged into these tensors, expected dtypes F64, F32, F16, "
        f"BF16:\n  {NAME}.weight in base.safetensors: {dtype}\n"
        "Use dequantize=True to write packed weights in bfloat16 and merge into them."
    )
    with pytest.raises(LayoutError, match=full_text(message)):
        merge_checkpoint(base, lora, out)
    merged = merge_checkpoint(base, lora, out, dequantize=True, verify=True)
    output = load_file(out)
    assert output.keys() == {name for name in tensors if name.endswith((".weight", ".bias"))}
    exact = tensors[f"{NAME}.weight"].astype(np.float32) * (1 if packing == "plain" else SCALE)
    weight = output[f"{NAME}.weight"]
    assert weight.dtype == ml_dtypes.bfloat16 and merged.dequantized == 1
    assert np.allclose(weight.astype(np.float64), exact + effect, rtol=2**-7, atol=1e-6)
    assert read_checkpoint(out).shards[0].metadata == {"format": "pt"}


def test_other_formats_are_refused(tmp_path: Path) -> None:
    """Formats with other scales are refused by name, as are malformed ones."""
    tensors = weights("newer")
    for text, description in (
        ('{"format": "mxfp8"}', "its format is 'mxfp8', expected one of"),
        ("[", "its format is None, expected one of"),
    ):
        tensors[f"{NAME}.comfy_quant"] = np.frombuffer(text.encode(), np.uint8)
        save_file(tensors, tmp_path / "base.safetensors")
        (problem,) = find_packed(read_checkpoint(tmp_path / "base.safetensors")).problems
        assert f"{NAME}.weight (12, 4): {description}" in problem
    tensors[f"{NAME}.comfy_quant"] = np.zeros(2, np.float32)
    save_file(tensors, tmp_path / "base.safetensors")
    (problem,) = find_packed(read_checkpoint(tmp_path / "base.safetensors")).problems
    assert f"{NAME}.comfy_quant is F32" in problem


def test_packed_weights_without_a_reader_are_named(tmp_path: Path) -> None:
    """A kohya file finds its module, and the merge says how the weight is packed."""
    tensors = weights("plain") | {f"{NAME}.weight": np.zeros((12, 4), np.int8)}
    save_file(tensors, base := tmp_path / "base.safetensors")
    file, _ = adapter(tmp_path / "x.safetensors", "kohya")
    lora = jaxmix.load(file, base=base)
    with pytest.raises(LayoutError) as refused:
        merge_checkpoint(base, lora, tmp_path / "out.safetensors")
    assert f"{NAME}.weight in base.safetensors: I8" in str(refused.value)
    with pytest.raises(
        LayoutError,
        match=full_text(
            f"{tmp_path}/base.safetensors: tensors that can't be dequantized:\n"
            "  model.diffusion_model.blocks.0.qkv.weight in "
            "base.safetensors: I8 (12, 4)\n"
            "dequantize=True reads awq, bitsandbytes, fp8, gptq, mxfp4, "
            "but config.json names no method. Load the model in "
            "transformers, call model.dequantize() and save it; or merge "
            "into the unquantized model, and quantize the result."
        ),
    ):
        merge_checkpoint(base, lora, tmp_path / "out.safetensors", dequantize=True)
