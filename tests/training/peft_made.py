"""Adapters that PEFT makes for the rows of `init_rows`. Import it only if PEFT is installed."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from peft.tuners.lora.config import KasaConfig
from torch import nn
from transformers.pytorch_utils import Conv1D

import jaxmix

from .init_rows import PARAMS, Row

__all__ = ["BIG", "model_of", "read"]

_CONFIGS: dict[str, Any] = {
    "lora": peft.LoraConfig,
    "dora": peft.LoraConfig,
    "kasa": peft.LoraConfig,
    "adalora": peft.AdaLoraConfig,
    "hira": peft.HiraConfig,
    "loha": peft.LoHaConfig,
    "lokr": peft.LoKrConfig,
    "oft": peft.OFTConfig,
    "boft": peft.BOFTConfig,
    "hra": peft.HRAConfig,
    "road": peft.RoadConfig,
    "ia3": peft.IA3Config,
    "psoft": peft.PsoftConfig,
    "shira": peft.ShiraConfig,
    "fourierft": peft.FourierFTConfig,
    "waveft": peft.WaveFTConfig,
    "c3a": peft.C3AConfig,
    "supertuning": peft.SupertuningConfig,
    "vera": peft.VeraConfig,
    "pvera": peft.PveraConfig,
    "randlora": peft.RandLoraConfig,
    "vblora": peft.VBLoRAConfig,
    "unilora": peft.UniLoraConfig,
    "tinylora": peft.TinyLoraConfig,
    "delora": peft.DeloraConfig,
    "gralora": peft.GraloraConfig,
    "miss": peft.MissConfig,
    "peanut": peft.PeanutConfig,
    "glora": peft.GloraConfig,
    "deft": peft.DeftConfig,
    "osf": peft.OSFConfig,
    "frod": peft.FrodConfig,
    "adamss": peft.AdamssConfig,
    "beft": peft.BeftConfig,
    "ln_tuning": peft.LNTuningConfig,
    "trainable_tokens": peft.TrainableTokensConfig,
}
_ALPHA = {
    "lora": "lora_alpha", "dora": "lora_alpha", "adalora": "lora_alpha", "kasa": "lora_alpha",
    "psoft": "psoft_alpha", "supertuning": "lora_alpha", "randlora": "randlora_alpha",
}  # fmt: skip
_MORE: dict[str, dict[str, Any]] = {
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
        """Exists because PEFT's language models require it."""


def model_of(row: Row, params: Any = PARAMS) -> Any:
    """Returns the model that PEFT makes."""
    config = dict(_MORE.get(row.kind, {}))
    for name, value in row.options.items():
        key = {"rank": "init_r" if row.kind == "adalora" else "r"}.get(name, name)
        config[_ALPHA.get(row.kind, key) if name == "alpha" else key] = value
    if row.kind == "oft" and "rank" in row.options:
        config["oft_block_size"] = 0
    torch.manual_seed(0)
    net: Any = _Net()
    if params is BIG:
        net.add_module("big", nn.Linear(256, 192, bias=False))
        net.big.weight.data = torch.tensor(BIG["big.weight"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = _CONFIGS[row.kind](target_modules=list(row.at), **config)
        return peft.get_peft_model(net, config)


def read(row: Row, folder: Path, params: Any = PARAMS) -> tuple[Any, list[Any]]:
    """Returns PEFT's adapter as jaxmix reads it, and the parameters that PEFT trains."""
    model = model_of(row, params)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(str(folder))
    trained = [value for value in model.parameters() if value.requires_grad]
    return jaxmix.load(folder, name=row.kind, base=params), trained
