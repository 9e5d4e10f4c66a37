"""Writes ``lycoris.zip`` with the installed torch and lycoris-lora.

    python -m tests.goldens.formats.make_lycoris

(lycoris-lora 4 needs toml and einops too.) For each case: the file that LyCORIS's network saves,
and the weights of its own forward: the outputs of the wrapped layers for every unit input. All are
computed in float64, except where LyCORIS itself uses float32 (the rotations).
"""

# Run where these libraries are installed.
# pyright: reportMissingImports=false, reportIndexIssue=false, reportCallIssue=false

import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lycoris import LycorisNetwork, create_lycoris, create_lycoris_from_weights
from torch import nn

from ..archive import pack
from .layers import effective

__all__ = ["CASES", "main"]

# Arguments of create_lycoris; "float32" marks the cases that LyCORIS can't compute in float64.
CASES: dict[str, dict[str, Any]] = {
    "locon": {"algo": "locon", "linear_dim": 2, "linear_alpha": 3},
    "locon-tucker": {"algo": "locon", "linear_dim": 2, "linear_alpha": 3, "use_tucker": True},
    "locon-scalar": {"algo": "locon", "linear_dim": 2, "linear_alpha": 1, "use_scalar": True},
    "dylora": {
        "algo": "dylora",
        "linear_dim": 4,
        "linear_alpha": 2,
        "block_size": 2,
        "float32": True,
    },
    "loha": {"algo": "loha", "linear_dim": 2, "linear_alpha": 3},
    "loha-tucker": {"algo": "loha", "linear_dim": 2, "linear_alpha": 3, "use_tucker": True},
    "lokr": {"algo": "lokr", "linear_dim": 1, "linear_alpha": 3, "factor": 2},
    "lokr-both": {"algo": "lokr", "linear_dim": 1, "linear_alpha": 2, "decompose_both": True},
    "lokr-tucker": {"algo": "lokr", "linear_dim": 1, "linear_alpha": 3, "use_tucker": True},
    "lokr-both-tucker": {
        "algo": "lokr",
        "linear_dim": 1,
        "linear_alpha": 3,
        "use_tucker": True,
        "decompose_both": True,
    },
    "lokr-full": {"algo": "lokr", "linear_dim": 2, "linear_alpha": 1, "full_matrix": True},
    "full": {"algo": "full", "linear_dim": 2},
    "norms": {"algo": "locon", "linear_dim": 2, "linear_alpha": 1, "train_norm": True},
    "dora-out": {"algo": "locon", "linear_dim": 2, "linear_alpha": 3, "dora_wd": True},
    "dora-in": {
        "algo": "locon",
        "linear_dim": 2,
        "linear_alpha": 3,
        "dora_wd": True,
        "wd_on_output": False,
    },
    "loha-dora-in": {
        "algo": "loha",
        "linear_dim": 2,
        "linear_alpha": 1,
        "dora_wd": True,
        "wd_on_output": False,
    },
    "loha-dora-out": {"algo": "loha", "linear_dim": 2, "linear_alpha": 1, "dora_wd": True},
    "lokr-dora-out": {
        "algo": "lokr",
        "linear_dim": 1,
        "linear_alpha": 2,
        "factor": 2,
        "dora_wd": True,
    },
    "ia3": {"algo": "ia3"},
    "ia3-input": {"algo": "ia3", "train_on_input": True},
    "diag-oft": {"algo": "diag-oft", "linear_dim": 4, "float32": True},
    "diag-oft-bound": {
        "algo": "diag-oft",
        "linear_dim": 4,
        "constraint": 0.02,
        "rescaled": True,
        "float32": True,
    },
    "boft": {"algo": "boft", "linear_dim": 2, "float32": True},
    "boft-bound": {
        "algo": "boft",
        "linear_dim": 4,
        "constraint": 0.02,
        "rescaled": True,
        "float32": True,
    },
    "glora": {"algo": "glora", "linear_dim": 2, "linear_alpha": 3},
}
WRITTEN_BY = {name: version(name) for name in ("lycoris-lora", "torch")}


class Block(nn.Module):
    """Layers of each kind, none square, under names with dots and underscores."""

    def __init__(self) -> None:
        """Torch draws the numbers."""
        super().__init__()
        self.proj_in = nn.Linear(12, 8)
        self.conv = nn.Conv2d(4, 8, (3, 2))
        self.conv_1d = nn.Conv1d(6, 4, 3, bias=False)
        self.norm_out = nn.LayerNorm(8)
        self.group = nn.GroupNorm(2, 8)


class Net(nn.Module):
    """A block and a head."""

    def __init__(self) -> None:
        """Torch draws the numbers."""
        super().__init__()
        self.blocks = nn.ModuleList([Block()])
        self.head_out = nn.Linear(10, 16)


def _fill(network: LycorisNetwork) -> None:
    """Replaces every parameter with random numbers, so that none is zero or one."""
    torch.manual_seed(11)
    parameters = ((n, p) for lora in network.loras for n, p in lora.named_parameters())
    for name, parameter in parameters:
        values = 0.4 * torch.randn_like(parameter)
        is_scale = name.endswith(("dora_scale", "rescale", "scalar"))
        parameter.data.copy_(1 + values.abs() if is_scale else values)


def make(case: Mapping[str, Any], file: Path) -> dict[str, np.ndarray]:
    """Returns one case: the file, and the weights of LyCORIS's own forward."""
    options = dict(case)
    dtype = torch.float32 if options.pop("float32", False) else torch.float64
    on_input = options.pop("train_on_input", False)
    net = _net().to(dtype)
    network = create_lycoris(net, 1.0, preset="full", **{"linear_dim": 4, **options})
    if options["algo"] == "dylora":  # whose files of convolutions LyCORIS can't load
        network.loras = [x for x in network.loras if x.module_type == "linear"]
    names = {lora.lora_name: _name(net, lora.lora_name) for lora in network.loras}
    for lora in network.loras if on_input else ():
        # What IA3Module does with train_on_input, which create_lycoris does not hand on.
        channels = net.get_submodule(names[lora.lora_name]).weight.shape[1]
        shape = [channels] if lora.weight.ndim == 1 else [1, channels, *lora.weight.shape[2:]]
        lora.weight, lora.train_input = nn.Parameter(torch.zeros(shape)), True
        lora.on_input.fill_(1)
    for lora in network.loras:  # not yet modules of the network
        lora.to(dtype)
    _fill(network)
    network.apply_to()
    network.eval()
    network.save_weights(str(file), None, {"ss_network_module": "lycoris.kohya"})
    if options["algo"] == "dylora":
        # Its own forward draws a rank; what LyCORIS loads from its file is a LoCon.
        net = _net().to(dtype)
        network, _ = create_lycoris_from_weights(1.0, str(file), net)
        for lora in network.loras:
            lora.to(dtype)
        network.apply_to()
    expected: dict[str, np.ndarray] = {}
    for name in names.values():
        weight, bias = effective(net.get_submodule(name), dtype)
        expected[f"{name}.weight"] = weight
        if f"{name}.bias" in base_state():
            expected[f"{name}.bias"] = bias
    return expected


def _net() -> Net:
    torch.manual_seed(7)
    net = Net()
    for name, parameter in net.named_parameters():
        if "norm" in name or "group" in name:
            parameter.data += 0.3 * torch.randn_like(parameter)
    return net


def _name(net: nn.Module, lora_name: str) -> str:
    plain = {f"lycoris_{name}".replace(".", "_"): name for name, _ in net.named_modules()}
    return plain[lora_name]


def base_state() -> dict[str, np.ndarray]:
    """Returns the net's own weights."""
    return {name: x.double().numpy() for name, x in _net().state_dict().items()}


def main() -> None:
    """Writes the file and prints its size."""
    data: dict[str, Any] = {"written_by.json": WRITTEN_BY}
    tensors = {"base.safetensors": base_state()}
    with tempfile.TemporaryDirectory() as folder:
        for name, case in CASES.items():
            tensors[f"{name}.expected.safetensors"] = make(
                case, Path(folder, f"{name}.safetensors")
            )
        data["cases.json"] = {name: bool(case.get("float32")) for name, case in CASES.items()}
        print(f"lycoris.zip: {pack('formats/lycoris', data, tensors, Path(folder)):,} bytes")


if __name__ == "__main__":
    main()
