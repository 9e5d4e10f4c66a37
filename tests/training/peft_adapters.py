"""Adapters that PEFT makes for the rows of `init_rows`. Import it only if PEFT is installed."""

import warnings
from dataclasses import fields
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import peft
import torch
from peft.tuners.lora.config import KasaConfig
from torch import nn
from transformers.pytorch_utils import Conv1D

import jaxmix

from .init_rows import PARAMS, Row

__all__ = ["BIG", "model_of", "read"]

# PEFT's types of kinds that have another name there.
_TYPES = {"dora": "LORA", "kasa": "LORA"}
_EXTRA_OPTIONS: dict[str, dict[str, Any]] = {
    "adalora": {"total_step": 10},
    "dora": {"use_dora": True},
    "kasa": {"kasa_config": KasaConfig()},
    "ia3": {"feedforward_modules": []},
    "unilora": {"save_indices": True},
    "frod": {"progressbar": False},
}


BIG = {"big.weight": np.random.default_rng(20).normal(size=(192, 256)).astype(np.float32)}


class _Net(nn.Module):
    """A network with the modules of `PARAMS`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 16, 3)
        self.conv1 = nn.Conv1d(8, 16, 3, bias=False)
        self.emb = nn.Embedding(48, 24)
        self.gpt = Conv1D(48, 24)
        self.lin = nn.Linear(24, 48)
        self.more = nn.ModuleDict({"wide": nn.Linear(36, 24, bias=False)})
        self.norm = nn.LayerNorm(24)
        self.load_state_dict({name: torch.tensor(value) for name, value in PARAMS.items()})

    def prepare_inputs_for_generation(self, *_: Any) -> None:
        """Does nothing; PEFT's language models require that it exists."""


def model_of(row: Row, params: Any = PARAMS) -> Any:
    """Returns PEFT's model with a new adapter of this row."""
    peft_type = peft.PeftType(_TYPES.get(row.kind, row.kind.upper()))
    config_class: Any = peft.PEFT_TYPE_TO_CONFIG_MAPPING[peft_type]
    field_names = {field.name for field in fields(config_class)}
    alpha = next((x for x in (f"{row.kind}_alpha", "alpha", "lora_alpha") if x in field_names), "")
    names = {"rank": "init_r" if row.kind == "adalora" else "r", "alpha": alpha}
    config = {names.get(option, option): value for option, value in row.options.items()}
    config = {**_EXTRA_OPTIONS.get(row.kind, {}), **config}
    if row.kind == "oft" and "rank" in row.options:
        config["oft_block_size"] = 0
    torch.manual_seed(0)
    net: Any = _Net()
    if params is BIG:
        net.add_module("big", nn.Linear(256, 192, bias=False))
        net.big.weight.data = torch.tensor(BIG["big.weight"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.get_peft_model(net, config_class(target_modules=list(row.targets), **config))


def read(row: Row, folder: Path, params: Any = PARAMS) -> tuple[Any, list[Any]]:
    """Returns PEFT's adapter as jaxmix reads it, and the parameters that PEFT trains."""
    model = model_of(row, params)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Skips the model card, which nothing reads and which takes longest to save.
        with mock.patch.object(type(model), "create_or_update_model_card"):
            model.save_pretrained(str(folder))
    trained = [value for value in model.parameters() if value.requires_grad]
    return jaxmix.load(folder, name=row.kind, base=params), trained
