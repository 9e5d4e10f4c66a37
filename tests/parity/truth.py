"""Saves the adapters of a case with PEFT and runs PEFT on them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import peft

from ..goldens.nets import Net
from .harness import TorchNet, build, exact, forward, inputs, mixed_model, save_adapter
from .layer_cases import NETS, Case

__all__ = ["Truth", "run_peft"]


@dataclass(frozen=True)
class Truth:
    """The original model, the saved folders in order, an input, and PEFT's output for it."""

    net: Net
    model: TorchNet
    folders: list[Path]
    x: np.ndarray
    output: np.ndarray


def run_peft(case: Case, root: Path) -> Truth:
    """Saves the case's adapters below `root` and runs PEFT."""
    net = NETS[case.net]
    model, x = build(net), inputs(net)
    folders = [root / f"{case.name}-{i}" for i in range(len(case.adapters))]
    for i, (config, folder) in enumerate(zip(case.configs(), folders, strict=True)):
        save_adapter(model, config, folder, seed=i)
    if case.truth == "single":
        with exact():
            peft_model = peft.PeftModel.from_pretrained(build(net), str(folders[0])).eval()
    else:
        peft_model = mixed_model(model, folders)
        if case.truth == "merged":
            with exact():
                peft_model = peft_model.merge_and_unload()
    return Truth(net, model, folders, x, forward(peft_model, x))
