"""Saves adapters with PEFT, and runs the reference: PEFT's mixed model in float64.

Where PEFT rounds to float32 (LoHa's alpha / r, a second adapter of a type, AdaLoRA's rank, COFT's
eps), it uses torch's default dtype; with float64 as the default it does not round.
"""

import contextlib
import copy
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import peft
import torch
from safetensors.torch import load_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from jaxmix import Layout

from ..goldens.nets import Layer, Net

__all__ = [
    "TOLERANCE",
    "TorchNet",
    "build",
    "difference",
    "exact",
    "forward",
    "inputs",
    "layout",
    "mixed_model",
    "save_adapter",
    "state",
    "type_of",
]

TOLERANCE = 1e-10
torch.set_num_threads(1)


@contextlib.contextmanager
def exact() -> Iterator[None]:
    """Sets float64 as the default and disables gradients and warnings."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_default_dtype(before)


def _module(layer: Layer) -> nn.Module:
    first, second = layer.size
    match layer.kind:
        case "linear":
            return nn.Linear(first, second, bias=layer.bias)
        case "gpt2":
            return Conv1D(second, first)
        case "embedding":
            return nn.Embedding(first, second)
        case kind:
            make = {"conv1d": nn.Conv1d, "conv2d": nn.Conv2d, "conv3d": nn.Conv3d}[kind]
            return make(first, second, layer.kernel, groups=layer.groups, bias=layer.bias)


class TorchNet(nn.Module):
    """The torch counterpart of `nets.run`."""

    def __init__(self, net: Net) -> None:
        """Adds each layer under its dotted name."""
        super().__init__()
        self.names = [layer.name for layer in net]
        for layer in net:
            parent = self
            *path, last = layer.name.split(".")
            for name_part in path:
                if name_part not in parent._modules:
                    parent.add_module(name_part, nn.Module())
                parent = parent.get_submodule(name_part)
            parent.add_module(last, _module(layer))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Computes layer, tanh, layer, …, layer."""
        for i, name in enumerate(self.names):
            x = self.get_submodule(name)(torch.tanh(x) if i else x)
        return x


def _rounded_to_float32(values: np.ndarray) -> torch.Tensor:
    """Rounds to float32 and returns float64, since such numbers compress well in the goldens."""
    return torch.from_numpy(np.asarray(values, np.float32).astype(np.float64))


def build(net: Net, seed: int = 0) -> TorchNet:
    """Returns a network with weights of about unit gain."""
    rng = np.random.default_rng(seed)
    with exact():
        model = TorchNet(net)
        for param in model.parameters():
            fan_in = np.prod(param.shape[1:]) if param.ndim > 1 else 4.0
            param.copy_(_rounded_to_float32(rng.normal(size=param.shape) / np.sqrt(fan_in)))
    return model.eval()


def inputs(net: Net, batch: int = 2, seed: int = 1) -> np.ndarray:
    """Returns random inputs: tokens for an embedding, images with sides of 5 for a convolution."""
    rng, first = np.random.default_rng(seed), net[0]
    if first.kind == "embedding":
        return rng.integers(0, first.size[0], size=(batch, 3))
    return _rounded_to_float32(
        rng.normal(size=(batch, first.size[0], *(5 for _ in first.kernel)))
    ).numpy()


# Standard deviations that make every term of every family matter next to weights of unit gain.
_STDDEV = {"lora_E": 1.0, "lora": 0.6, "hada": 0.7, "lokr": 0.6, "oft": 0.15, "shira": 0.5}


def _draw(name: str, value: torch.Tensor, rng: np.random.Generator) -> np.ndarray:
    if "lora_magnitude_vector" in name:
        return value.numpy() * rng.uniform(0.5, 1.5, size=value.shape)
    stddev = next((s for key, s in _STDDEV.items() if key in name), 0.4)
    return rng.normal(size=value.shape) * stddev


def save_adapter(
    model: nn.Module,
    config: peft.PeftConfig,
    folder: Path,
    *,
    seed: int,
    draw: Callable[[str, torch.Tensor, np.random.Generator], np.ndarray] | None = None,
) -> Any:
    """Adapts a copy of the model with PEFT, draws every trained number, saves it and returns it."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    with exact():
        adapted = peft.get_peft_model(copy.deepcopy(model), config)
        for name, param in adapted.named_parameters():
            if param.requires_grad and "ranknum" not in name and "original_module" not in name:
                param.copy_(_rounded_to_float32((draw or _draw)(name, param, rng)))
        # Skips the model card, which nothing reads and which takes longest to save.
        with mock.patch.object(type(adapted), "create_or_update_model_card"):
            adapted.save_pretrained(str(folder))
    return adapted.eval()


def mixed_model(model: nn.Module, folders: Sequence[Path]) -> Any:
    """Returns PEFT's mixed model over a copy of `model`, with these adapters, all active."""
    mixed, names = None, [f"adapter{i}" for i in range(len(folders))]
    with exact():
        for name, folder in zip(names, folders, strict=True):
            config = peft.PeftConfig.from_pretrained(str(folder))
            if mixed is None:
                mixed = peft.get_peft_model(copy.deepcopy(model), config, name, mixed=True)
            else:
                mixed.add_adapter(name, config)
            result = peft.set_peft_model_state_dict(
                mixed, load_file(folder / "adapter_model.safetensors"), adapter_name=name
            )
            # PEFT also saves the base weight of an adapted embedding, which is unchanged.
            unexpected = [k for k in result.unexpected_keys if not k.endswith("base_layer.weight")]
            missing = [k for k in result.missing_keys if f".{name}" in k and "ranknum" not in k]
            if missing or unexpected:
                raise ValueError(f"PEFT did not load {folder}: {missing}, {unexpected}")
        assert mixed is not None
        mixed.set_adapter(names)
    return mixed.eval()


def forward(model: nn.Module, x: np.ndarray) -> np.ndarray:
    """Returns the model's output for one input array, in float64."""
    with exact():
        out = model(torch.from_numpy(x))
        return (out if isinstance(out, torch.Tensor) else out[0]).numpy()


def state(model: nn.Module) -> dict[str, np.ndarray]:
    """Returns a copy of the model's weights as a flat dict {PyTorch name: array}."""
    return {name: param.numpy().copy() for name, param in model.state_dict().items()}


def layout(model: nn.Module) -> Layout:
    """Returns a layout that lists the Conv1D layers, which square shapes alone do not show."""
    conv1d_names = (
        re.escape(name) for name, module in model.named_modules() if isinstance(module, Conv1D)
    )
    return Layout("the model's classes", conv1d="|".join(conv1d_names))


def difference(ours: np.ndarray, truth: np.ndarray) -> float:
    """Returns the largest |ours - truth| over the largest |truth|; inf for wrong shapes or NaN."""
    if ours.shape != truth.shape or not np.isfinite(ours).all() or not np.isfinite(truth).all():
        return float("inf")
    return float(np.abs(ours - truth).max() / np.abs(truth).max())


def type_of(config: Any) -> str:
    """Returns PEFT's name of a config's type, in capitals."""
    return config.peft_type.value
