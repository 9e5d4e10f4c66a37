"""Writes ``diffusers.zip`` with the installed torch, peft and diffusers.

    python -m tests.goldens.formats.make_diffusers

PEFT's LoRAs of a small UNet and a small text encoder, in every spelling that diffusers has: its
own functions convert and write them (``LoraBaseMixin``, ``convert_state_dict_to_*``). Its first
one, of attention processors, it only reads: there the keys are turned back here and checked by its
reader. With each file go the weights of PEFT's own forward.
"""

# Run where these libraries are installed.
# pyright: reportMissingImports=false, reportIndexIssue=false, reportCallIssue=false

import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY, LoraBaseMixin
from diffusers.utils.state_dict_utils import (
    convert_state_dict_to_diffusers,
    convert_state_dict_to_kohya,
    convert_state_dict_to_peft,
    convert_unet_state_dict_to_peft,
)
from peft import LoraConfig, inject_adapter_in_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import nn

from ..archive import pack
from .layers import effective_all, fill

__all__ = ["main"]

TARGETS = ["to_q", "to_out.0", "conv1", "proj"]
TEXT_TARGETS = ["q_proj", "out_proj"]


class UNet(nn.Module):
    """Attention's layers, a projection with a bias, a convolution."""

    def __init__(self) -> None:
        """Torch draws the numbers."""
        super().__init__()
        self.down_blocks = nn.ModuleList([nn.Module()])
        block = self.down_blocks[0]
        block.attn1 = nn.Module()
        block.attn1.to_q = nn.Linear(8, 12, bias=False)
        block.attn1.to_out = nn.ModuleList([nn.Linear(12, 8)])
        block.conv1 = nn.Conv2d(4, 8, 3)
        block.proj = nn.Linear(10, 6)


class TextEncoder(nn.Module):
    """One layer, in CLIP's names."""

    def __init__(self) -> None:
        """Torch draws the numbers."""
        super().__init__()
        self.text_model = nn.Module()
        self.text_model.layers = nn.ModuleList([nn.Module()])
        self.text_model.layers[0].self_attn = nn.Module()
        self.text_model.layers[0].self_attn.q_proj = nn.Linear(10, 6)
        self.text_model.layers[0].self_attn.out_proj = nn.Linear(6, 10)


def _models() -> dict[str, nn.Module]:
    torch.manual_seed(5)
    return {"unet": UNet().double(), "text_encoder": TextEncoder().double()}


def _wrapped(parts: dict[str, list[str]], **options: Any) -> dict[str, tuple[nn.Module, Any]]:
    """Returns the models with PEFT's adapters in them, and the configs."""
    models, wrapped = _models(), {}
    for part, targets in parts.items():
        config = LoraConfig(r=2, target_modules=targets, **options)
        model = inject_adapter_in_model(config, models[part]).double()
        fill([(n, p) for n, p in model.named_parameters() if "lora_" in n])
        wrapped[part] = (model, config)
    return wrapped


def _expected(wrapped: dict[str, tuple[nn.Module, Any]]) -> dict[str, np.ndarray]:
    tensors: dict[str, np.ndarray] = {}
    for part, (model, _) in wrapped.items():
        layers = (nn.Linear, nn.Conv2d)
        names = [
            name.removesuffix(".base_layer")
            for name, m in model.named_modules()
            if isinstance(m, layers) and ".lora_" not in name
        ]
        tensors |= effective_all(model, names, torch.float64, f"{part}.")
    return tensors


def _states(wrapped: dict[str, tuple[nn.Module, Any]]) -> dict[str, dict[str, torch.Tensor]]:
    return {part: get_peft_model_state_dict(model) for part, (model, _) in wrapped.items()}


def _write(folder: Path, name: str, wrapped: Any, with_metadata: bool) -> None:
    """As diffusers' pipelines save: ``<part>.….lora_A.weight``, and their metadata."""
    configs = {part: config.to_dict() for part, (_, config) in wrapped.items()}
    LoraBaseMixin._save_lora_weights(
        save_directory=str(folder),
        lora_layers=_states(wrapped),
        lora_metadata=configs if with_metadata else {},
        weight_name=f"{name}.safetensors",
    )


def _flat(wrapped: Any) -> dict[str, torch.Tensor]:
    states = _states(wrapped)
    return {f"{part}.{key}": x for part, state in states.items() for key, x in state.items()}


def _processors(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """PEFT's keys in diffusers' first spelling, which its own reader must turn back."""
    old = {}
    for key, x in state.items():
        end = "down" if "lora_A" in key else "up"
        module = key.partition(".lora_")[0]
        block, _, layer = module.rpartition(".attn1.")
        layer = layer.removesuffix(".0")
        old[f"{block}.attn1.processor.{layer}_lora.{end}.weight"] = x
    assert set(convert_unet_state_dict_to_peft(old)) == set(state)
    return old


def _cases(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    both = {"unet": TARGETS, "text_encoder": TEXT_TARGETS}
    expected: dict[str, dict[str, np.ndarray]] = {}
    tricky: dict[str, Any] = dict(
        lora_alpha=3, use_rslora=True, rank_pattern={"to_q": 3}, alpha_pattern={"proj": 5}
    )
    for name, parts, options, with_metadata in (
        ("new", {"unet": TARGETS}, {"lora_alpha": 2}, False),
        ("new-metadata", both, tricky, True),
        ("new-dora", both, {"lora_alpha": 3, "use_dora": True}, True),
        ("new-bias", {"unet": ["proj", "conv1"]}, {"lora_alpha": 3, "lora_bias": True}, True),
    ):
        wrapped = _wrapped(parts, **options)
        _write(folder, name, wrapped, with_metadata)
        expected[name] = _expected(wrapped)
    wrapped = _wrapped(both, lora_alpha=2)
    plain = {"format": "pt"}
    old = convert_state_dict_to_diffusers(_flat(wrapped))
    assert set(convert_state_dict_to_peft(old)) and LORA_ADAPTER_METADATA_KEY not in plain
    save_file(old, folder / "diffusers.safetensors", plain)
    kohya = {k: x.contiguous() for k, x in convert_state_dict_to_kohya(_flat(wrapped)).items()}
    save_file(kohya, folder / "to-kohya.safetensors", plain)
    expected["diffusers"] = expected["to-kohya"] = _expected(wrapped)
    wrapped = _wrapped({"unet": ["to_q", "to_out.0"]}, lora_alpha=2)
    processors = _processors(_states(wrapped)["unet"])
    save_file({f"unet.{k}": x for k, x in processors.items()}, folder / "processors.safetensors")
    expected["processors"] = _expected(wrapped)
    return expected


def main() -> None:
    """Writes the file and prints its size."""
    base = {
        f"{part}.{name}": x.numpy()
        for part, model in _models().items()
        for name, x in model.state_dict().items()
    }
    tensors = {"base.safetensors": base}
    with tempfile.TemporaryDirectory() as folder:
        expected = _cases(Path(folder))
        tensors |= {f"{name}.expected.safetensors": x for name, x in expected.items()}
        written_by = {name: version(name) for name in ("diffusers", "peft", "torch")}
        data = {
            "written_by.json": written_by,
            "cases.json": dict.fromkeys(expected, False),
        }
        print(f"diffusers.zip: {pack('formats/diffusers', data, tensors, Path(folder)):,} bytes")


if __name__ == "__main__":
    main()
