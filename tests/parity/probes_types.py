"""Probes of PEFT's other types and of rarer forms of LoRA: see `probes`."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from torch import nn

from .harness import build, difference, forward, inputs, save_adapter
from .layer_cases import NETS
from .nested import nested

__all__ = ["PROBES"]

_BOTH = {"target_modules": ["one", "two"]}


def _inside(config_class: type[peft.PeftConfig], **options: Any) -> Callable[[Path], str]:
    """Returns a probe of whether a LoRA inside a type's wrapper still acts."""

    def probe(folder: Path) -> str:
        model, x = build(NETS["linear"]), inputs(NETS["linear"])
        configs = peft.LoraConfig(r=3, **_BOTH), config_class(**_BOTH, **options)
        folders = [folder / "lora", folder / "other"]
        for i, (config, target) in enumerate(zip(configs, folders, strict=True)):
            save_adapter(model, config, target, seed=i)
        with_lora, without_lora = (
            forward(nested(model, stack), x) for stack in (folders, folders[1:])
        )
        is_dropped = difference(with_lora, without_lora) < 1e-12
        return "the LoRA is silently dropped" if is_dropped else "the LoRA acts"

    return probe


def _attention(folder: Path) -> str:
    """Counts how many times PEFT adds the low-rank product of the output projection."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.MultiheadAttention(8, 2, batch_first=True))
    config = peft.LoraConfig(r=2, target_modules=["0"], init_lora_weights=False)
    adapted: Any = peft.get_peft_model(copy.deepcopy(model), config).eval()
    x = torch.randn(1, 3, 8)

    def run(net: Any) -> np.ndarray:
        return net(x, x, x)[0].detach().numpy()

    layer = adapted.base_model.model[0]
    truth = run(layer)
    for times in (1, 2):
        merged_by_hand: Any = copy.deepcopy(model)[0].eval()
        with torch.no_grad():
            for weight, layer_of_factors in (
                (merged_by_hand.in_proj_weight, layer),
                (merged_by_hand.out_proj.weight, layer.get_base_layer().out_proj),
            ):
                delta = (
                    layer_of_factors.lora_B["default"].weight
                    @ layer_of_factors.lora_A["default"].weight
                )
                count = times if weight is merged_by_hand.out_proj.weight else 1
                weight += count * layer_of_factors.scaling["default"] * delta
        if difference(run(merged_by_hand), truth) < 1e-5:
            return f"the output projection's BA is added {('once', 'twice')[times - 1]}"
    return "something else"


def _hira(folder: Path) -> str:
    config = peft.HiraConfig(r=4, rank_pattern={"two": 2}, **_BOTH)
    adapted: Any = peft.get_peft_model(build(NETS["linear"]), config)
    rank = adapted.base_model.model.two.hira_A["default"].shape[0]
    return f"`rank_pattern` of 2 gives rank {rank}"


_COMPOSED = "affine maps compose: the LoRA acts in any order"
PROBES: list[tuple[str, Callable[[Path], str], str]] = [
    ("LoRA, HRA around it", _inside(peft.HRAConfig, r=2), _COMPOSED),
    ("LoRA, GLoRA around it", _inside(peft.GloraConfig, r=2), _COMPOSED),
    ("LoRA, MiSS *bat* around it", _inside(peft.MissConfig, r=2, init_weights="bat"), _COMPOSED),
    ("LoRA, FRoD around it",
     _inside(peft.FrodConfig, progressbar=False, sparse_rate=0.1), _COMPOSED),
    ("LoRA, HiRA around it", _inside(peft.HiraConfig, r=2), _COMPOSED),
    ("LoRA, OSF around it", _inside(peft.OSFConfig), _COMPOSED),
    ("LoRA on torch's MultiheadAttention", _attention, "the same, because it is trained that way"),
    ("HiRA with a `rank_pattern`", _hira, "ranks come from the tensors"),
]  # fmt: skip
