"""Exported files, loaded by the libraries that they are written for."""

# pyright: reportMissingImports=false

# Collected only if these libraries are installed.

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from diffusers.utils.state_dict_utils import _load_sft_state_dict_metadata
from lycoris import create_lycoris_from_weights
from peft import LoraConfig, inject_adapter_in_model
from peft.utils import set_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn

import jaxmix
from jaxmix.converters.adapters.diffusers import METADATA, export_diffusers
from jaxmix.converters.adapters.kohya import export_kohya
from jaxmix.families import LoHa, LoKr, LoRA

from ....goldens.formats.layers import effective_all
from .test_export import drawn

NAMES = ["proj_in", "conv"]


class Net(nn.Module):
    """A linear layer and a convolution."""

    def __init__(self) -> None:
        """Draws the weights with torch."""
        super().__init__()
        self.proj_in = nn.Linear(12, 8)
        self.conv = nn.Conv2d(4, 8, (3, 2))


def net() -> Any:
    """Returns the network in float64."""
    torch.manual_seed(0)
    return Net().double()


def truth(adapter: jaxmix.Adapter) -> dict[str, np.ndarray]:
    """Returns the network's weights with jaxmix's adapter composed in."""
    base = {name: x.numpy() for name, x in net().state_dict().items()}
    with jax.enable_x64(True):
        return {k: np.asarray(v) for k, v in jaxmix.compose(base, [adapter]).items()}


def agree(tensors: dict[str, np.ndarray], adapter: jaxmix.Adapter, tolerance: float) -> None:
    """Asserts that the wrapped network's effective weights are jaxmix's, and not the base's."""
    composed, base = truth(adapter), net().state_dict()
    for name in ("proj_in.weight", "conv.weight"):
        assert np.abs(tensors[name] - composed[name]).max() < tolerance
        assert np.abs(composed[name] - base[name].numpy()).max() > 0.1


LORA = {
    "proj_in": LoRA(drawn(3, 12), drawn(8, 3), 0.6),
    "conv": LoRA(drawn(2, 24), drawn(8, 2), 1.5, kernel=(3, 2)),
}
LOHA = {
    name: LoHa(drawn(8, 2), drawn(2, size), drawn(8, 2, seed=1), drawn(2, size, seed=1), 0.7)
    for name, size in (("proj_in", 12), ("conv", 24))
}
LOKR = {
    "proj_in": LoKr((drawn(2, 3),), (drawn(4, 1), drawn(1, 4)), 0.7),
    "conv": LoKr((drawn(2, 2),), (drawn(4, 2, 3, 2),), 0.7),
}


@pytest.mark.parametrize("updates", [LORA, LOHA, LOKR], ids=["lora", "loha", "lokr"])
def test_lycoris_loads_what_export_kohya_writes(updates: Any, tmp_path: Path) -> None:
    """LyCORIS loads the file by create_lycoris_from_weights, with modules in float32."""
    adapter = 0.8 * jaxmix.Adapter(updates)
    file = export_kohya(adapter, tmp_path / "x.safetensors", prefix="lycoris")
    wrapped = net()
    network, _ = create_lycoris_from_weights(1.0, str(file), wrapped)
    assert len(network.loras) == 2
    for lora in network.loras:
        lora.double()
    network.apply_to()
    agree(effective_all(wrapped, NAMES, torch.float64), adapter, 1e-6)


def test_peft_loads_what_export_diffusers_writes(tmp_path: Path) -> None:
    """PEFT loads the file as diffusers does: config from the metadata, factors by name."""
    assert METADATA == LORA_ADAPTER_METADATA_KEY
    dora = {
        name: LoRA(lora.a, lora.b, lora.scale, magnitude=1 + np.abs(drawn(8)), kernel=lora.kernel)
        for name, lora in LORA.items()
    }
    for updates, strength in ((LORA, 0.8), (dora, 1.0)):
        adapter = strength * jaxmix.Adapter(updates)
        file = tmp_path / "x.safetensors"
        export_diffusers(adapter, file, prefix="unet", force=True)
        metadata: Any = _load_sft_state_dict_metadata(str(file))
        config = LoraConfig(**{k.removeprefix("unet."): v for k, v in metadata.items()})
        model = inject_adapter_in_model(config, net()).double()
        state = {k.removeprefix("unet."): x for k, x in load_file(file).items()}
        result = set_peft_model_state_dict(model, state, "default")
        assert not result.unexpected_keys
        agree(effective_all(model, NAMES, torch.float64), adapter, 1e-12)
