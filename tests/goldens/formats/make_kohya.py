"""Writes ``kohya.zip`` with the installed torch and a checkout of kohya-ss/sd-scripts.

    PYTHONPATH=<sd-scripts> python -m tests.goldens.formats.make_kohya

Its ``networks/lora.py`` and ``networks/oft.py`` are used as they are; of ``library`` they need two
names only, for which stand-ins serve (what they stand for wants a GPU's packages). For each case:
the network's state dict, as its ``save_weights`` hands it to safetensors, and the weights of its
own forward. The rotations go through float32.
"""

# Run where these libraries are installed.
# pyright: reportMissingImports=false, reportIndexIssue=false, reportCallIssue=false

import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from ..archive import pack
from .layers import effective_all, fill

__all__ = ["main"]

COMMIT = "48d368fa"


class CLIPAttention(nn.Module):
    """Two projections, under CLIP's names; sd-scripts looks at the class's name."""

    def __init__(self, size: int) -> None:
        """Torch draws the numbers."""
        super().__init__()
        self.q_proj = nn.Linear(size, 6)
        self.out_proj = nn.Linear(6, size, bias=False)


class TextEncoder(nn.Module):
    """One layer."""

    def __init__(self, size: int) -> None:
        """Torch draws the numbers."""
        super().__init__()
        self.text_model = nn.Module()
        self.text_model.layers = nn.ModuleList([nn.Module()])
        self.text_model.layers[0].self_attn = CLIPAttention(size)


class Transformer2DModel(nn.Module):
    """A convolution of one point and linear layers."""

    def __init__(self) -> None:
        """Torch draws the numbers."""
        super().__init__()
        self.proj_in = nn.Conv2d(4, 8, 1)
        self.to_q = nn.Linear(8, 12, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(12, 8)])


class ResnetBlock2D(nn.Module):
    """A convolution."""

    def __init__(self) -> None:
        """Torch draws the numbers."""
        super().__init__()
        self.conv1 = nn.Conv2d(4, 8, 3)


class UNet(nn.Module):
    """One block."""

    def __init__(self) -> None:
        """Torch draws the numbers."""
        super().__init__()
        self.down_blocks = nn.ModuleList([nn.Module()])
        self.down_blocks[0].attentions = nn.ModuleList([Transformer2DModel()])
        self.down_blocks[0].resnets = nn.ModuleList([ResnetBlock2D()])


def _stand_ins() -> None:
    """Creates stand-ins for the names of `library` that networks/*.py import."""
    utils: Any = types.ModuleType("library.utils")
    utils.setup_logging = lambda *args, **kwargs: None
    unet: Any = types.ModuleType("library.sdxl_original_unet")
    unet.SdxlUNet2DConditionModel = type("SdxlUNet2DConditionModel", (nn.Module,), {})
    sys.modules |= {"library.utils": utils, "library.sdxl_original_unet": unet}


def _models() -> dict[str, nn.Module]:
    torch.manual_seed(5)
    return {
        "unet": UNet().double(),
        "text_encoder": TextEncoder(10).double(),
        "text_encoder_2": TextEncoder(14).double(),
    }


def _expected(models: dict[str, nn.Module], dtype: torch.dtype) -> dict[str, np.ndarray]:
    tensors: dict[str, np.ndarray] = {}
    for part, model in models.items():
        names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
        tensors |= effective_all(model, names, dtype, f"{part}.")
    return tensors


def _save(network: nn.Module, file: Path, drop: str = "") -> None:
    state = {k: v.contiguous() for k, v in network.state_dict().items()}
    tensors = {k: v for k, v in state.items() if not drop or not k.endswith(drop)}
    metadata = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": "2",
        "ss_network_alpha": "9",
    }
    save_file(tensors, file, metadata)


def _lora(file: Path, encoders: list[str], drop: str = "") -> dict[str, np.ndarray]:
    """LoRA as sd-scripts trains it; the metadata contradict the keys, which take precedence."""
    from networks import lora

    models = _models()
    texts = [models[name] for name in encoders]
    network = lora.LoRANetwork(
        texts if len(texts) > 1 else texts[0],
        models["unet"],
        lora_dim=2,
        alpha=2 if drop else 3,
        conv_lora_dim=3,
        conv_alpha=3 if drop else 1,
    )
    network.double()
    network.apply_to(texts if len(texts) > 1 else texts[0], models["unet"], True, True)
    network.double()
    fill(list(network.named_parameters()))
    _save(network, file, drop)
    return _expected({k: models[k] for k in ("unet", *encoders)}, torch.float64)


def _oft(file: Path) -> dict[str, np.ndarray]:
    """sd-scripts' own OFT, of which alpha times out is the bound."""
    from networks import oft

    models = _models()
    unet = models["unet"].float()
    network = oft.OFTNetwork([], unet, dim=2, alpha=0.05, enable_all_linear=True)
    network.apply_to([], unet, False, True)
    fill(list(network.named_parameters()))
    _save(network, file)
    return _expected({"unet": unet}, torch.float32)


def main() -> None:
    """Writes the file and prints its size."""
    _stand_ins()
    base = {
        f"{part}.{name}": x.numpy()
        for part, model in _models().items()
        for name, x in model.state_dict().items()
    }
    tensors = {"base.safetensors": base}
    with tempfile.TemporaryDirectory() as folder:
        networks = {
            "sd": lambda file: _lora(file, ["text_encoder"]),
            "sdxl": lambda file: _lora(file, ["text_encoder", "text_encoder_2"]),
            "no-alpha": lambda file: _lora(file, ["text_encoder"], ".alpha"),
            "oft": _oft,
        }
        for name, make in networks.items():
            expected = make(Path(folder, f"{name}.safetensors"))
            tensors[f"{name}.expected.safetensors"] = expected
        data = {
            "written_by.json": {"sd-scripts": COMMIT, "torch": torch.__version__},
            "cases.json": {name: name == "oft" for name in networks},
        }
        print(f"kohya.zip: {pack('formats/kohya', data, tensors, Path(folder)):,} bytes")


if __name__ == "__main__":
    main()
