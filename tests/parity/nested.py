"""PEFT's wrappers of any types one inside the other: what its mixed model permits for six only.

A type's own PeftModel wraps whatever it finds, also layers that another type has wrapped; the inner
wrappers then go on acting. Types whose forward looks through to the innermost base and leaves out
what the inner wrappers do are marked as such in the table of forms.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peft
from safetensors.torch import load_file
from torch import nn

from .harness import exact, save_adapter

__all__ = ["Form", "neighbours", "nested", "save_all"]


@dataclass(frozen=True)
class Form:
    """A type of PEFT in one of its forms.

    Args:
        name: what to call it.
        net: the net that it adapts, by its name in `layer_cases.NETS`.
        make: its config's class.
        options: the config's fields; both layers are adapted unless they say otherwise.
        nests: whether PEFT's forward lets what it wraps act; None where it is not to be nested.
        reads: whether jaxmix.load asks for the base.
        tolerance: how near PEFT's numbers are to be met.
        draw: how its parameters are drawn: from name, present value and generator, or None for the
            harness's own way.
    """

    name: str
    net: str
    make: type[peft.PeftConfig]
    options: dict[str, Any] = field(default_factory=dict)
    nests: bool = True
    reads: bool = False
    tolerance: float = 1e-10
    draw: Any = None

    def config(self) -> peft.PeftConfig:
        """The config, made anew: PEFT writes into it."""
        return self.make(**{"target_modules": ["one", "two"], **self.options})


def neighbours(form: Form) -> tuple[peft.PeftConfig, peft.PeftConfig]:
    """The adapters before and after it: LoRA and LoHa, but where PEFT has none for such a layer."""
    fan = {"fan_in_fan_out": True} if form.net.startswith("gpt2") else {}
    told: Any = form.config()
    where = {"target_modules": told.target_modules or ["one", "two"]}
    loha = peft.LoHaConfig(r=3, alpha=4, **where)
    if form.net.endswith("groups"):
        return peft.LoKrConfig(r=2, alpha=3, **where), loha
    lora = peft.LoraConfig(r=3, lora_alpha=5, **where, **fan)
    # No second LoRA: adding it turns off the first one, which does not know the new one's name.
    if form.net.startswith(("gpt2", "conv3d")):
        if form.make is peft.IA3Config:
            return lora, peft.HiraConfig(r=2, **where, **fan)
        return lora, peft.IA3Config(feedforward_modules=[], **where, **fan)
    if form.net.startswith("embedding"):
        return lora, peft.OFTConfig(oft_block_size=2, **where)
    return lora, loha


def save_all(model: nn.Module, form: Form, root: Path) -> list[Path]:
    """The form between its neighbours, each trained alone and saved by PEFT."""
    before, after = neighbours(form)
    folders = [root / name for name in ("before", "form", "after")]
    for i, (config, folder) in enumerate(zip((before, form.config(), after), folders, strict=True)):
        save_adapter(model, config, folder, seed=i, draw=form.draw if i == 1 else None)
    return folders


def nested(model: nn.Module, folders: Sequence[Path]) -> nn.Module:
    """A copy of the model with adapters wrapped around each other, the first one innermost."""
    model = copy.deepcopy(model)
    with exact():
        for i, folder in enumerate(folders):
            name = f"a{i}"
            config = peft.PeftConfig.from_pretrained(str(folder))
            wrapped = peft.get_peft_model(model, config, name)
            found = peft.set_peft_model_state_dict(
                wrapped, load_file(folder / "adapter_model.safetensors"), adapter_name=name
            )
            extra = [k for k in found.unexpected_keys if not k.endswith("base_layer.weight")]
            if extra:
                raise ValueError(f"PEFT did not load {folder}: {extra}")
            inner: Any = wrapped.base_model.model
            model = inner
    return model.eval()
