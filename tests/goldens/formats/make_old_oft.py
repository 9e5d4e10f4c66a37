"""Writes ``oft-0.13.zip`` or ``oft-0.15.zip`` with that peft on the path.

    PYTHONPATH=<peft 0.13.2 unpacked> python -m tests.goldens.formats.make_old_oft

The OFT of peft before 0.16, another one in each of the two versions: the folders that they save,
and the weights of their own forward in float64. 11 outputs are no multiple of the four blocks.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from torch import nn

from ..archive import pack
from .layers import effective_all

__all__ = ["main"]

IS_OLDEST = peft.__version__.startswith("0.13")


class Net(nn.Module):
    """Two linear layers and a convolution."""

    def __init__(self) -> None:
        """Torch's own draws."""
        super().__init__()
        self.proj = nn.Linear(12, 8)
        self.odd = nn.Linear(12, 11 if IS_OLDEST else 10, bias=False)
        self.conv = nn.Conv2d(4, 8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """None that is run: its layers are."""
        return self.proj(x)


def _case(folder: Path, options: dict[str, Any]) -> dict[str, np.ndarray]:
    torch.manual_seed(2)
    net = Net().double()
    rest = {} if IS_OLDEST else {"oft_block_size": 0}
    config = peft.OFTConfig(
        r=4, target_modules=["proj", "odd", "conv"], init_weights=False, **rest, **options
    )
    model: Any = peft.get_peft_model(net, config).double()
    model.save_pretrained(folder)
    (folder / "README.md").unlink()
    layers = ["proj", "odd", "conv"]
    return effective_all(model.base_model.model, layers, torch.float64)


def main() -> None:
    """Write the file and say how large it is."""
    torch.manual_seed(2)
    base = {name: x.numpy() for name, x in Net().double().state_dict().items()}
    tensors = {"base.safetensors": base}
    cases = {
        "plain": {},
        "shared": {"block_share": True},
        "coft": {"coft": True, "eps": 0.01},
        "coft-shared": {"coft": True, "eps": 0.01, "block_share": True},
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, options in cases.items():
            tensors[f"{name}.expected.safetensors"] = _case(Path(folder, name), options)
        data = {
            "written_by.json": {"peft": peft.__version__, "torch": torch.__version__},
            "cases.json": {name: options.get("eps") for name, options in cases.items()},
        }
        name = f"oft-{peft.__version__.rpartition('.')[0]}"
        print(f"{name}.zip: {pack(f'formats/{name}', data, tensors, Path(folder)):,} bytes")


if __name__ == "__main__":
    main()
