"""Nested wrappers of any PEFT types; PEFT's mixed model permits this for six types only.

A type's own PeftModel wraps any layer, including layers that another type has wrapped, and the
inner wrappers stay active. Some types' forwards use the innermost base and ignore the inner
wrappers, which the table of forms marks.
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
    """A PEFT type in one of its forms.

    Args:
        name: Its name in the tests.
        net: The network that it adapts, by its name in `layer_cases.NETS`.
        config_class: The class of its config.
        options: The config's fields; by default both layers are adapted.
        is_nested: Whether to test it between other adapters. False if PEFT's forward ignores the
            wrappers inside, None if PEFT can't nest it.
        needs_base: Whether `jaxmix.load` needs the base.
        tolerance: The largest allowed difference from PEFT.
        draw: Draws a parameter from its name, value and a generator; None for the harness's draws.
    """

    name: str
    net: str
    config_class: type[peft.PeftConfig]
    options: dict[str, Any] = field(default_factory=dict)
    is_nested: bool | None = True
    needs_base: bool = False
    tolerance: float = 1e-10
    draw: Any = None

    def config(self) -> peft.PeftConfig:
        """Returns a new config, because PEFT changes the config that it gets."""
        return self.config_class(**{"target_modules": ["one", "two"], **self.options})


def neighbours(form: Form) -> tuple[peft.PeftConfig, peft.PeftConfig]:
    """Returns the inner and outer adapter: LoRA and LoHa if PEFT supports them for the layer."""
    fan = {"fan_in_fan_out": True} if form.net.startswith("gpt2") else {}
    config: Any = form.config()
    targets = {"target_modules": config.target_modules or ["one", "two"]}
    loha = peft.LoHaConfig(r=3, alpha=4, **targets)
    if form.net.endswith("groups"):
        return peft.LoKrConfig(r=2, alpha=3, **targets), loha
    lora = peft.LoraConfig(r=3, lora_alpha=5, **targets, **fan)
    # Not a second LoRA: PEFT would disable the first, which does not know the second's name.
    if form.net.startswith(("gpt2", "conv3d")):
        if form.config_class is peft.IA3Config:
            return lora, peft.HiraConfig(r=2, **targets, **fan)
        return lora, peft.IA3Config(feedforward_modules=[], **targets, **fan)
    if form.net.startswith("embedding"):
        return lora, peft.OFTConfig(oft_block_size=2, **targets)
    return lora, loha


def save_all(model: nn.Module, form: Form, root: Path) -> list[Path]:
    """Saves the form and its neighbours, each trained alone by PEFT."""
    inner_config, outer_config = neighbours(form)
    folders = [root / name for name in ("before", "form", "after")]
    for i, (config, folder) in enumerate(
        zip((inner_config, form.config(), outer_config), folders, strict=True)
    ):
        save_adapter(model, config, folder, seed=i, draw=form.draw if i == 1 else None)
    return folders


def nested(model: nn.Module, folders: Sequence[Path]) -> nn.Module:
    """Returns a copy of the model with nested adapters, the first one innermost."""
    model = copy.deepcopy(model)
    with exact():
        for i, folder in enumerate(folders):
            name = f"a{i}"
            config = peft.PeftConfig.from_pretrained(str(folder))
            wrapped = peft.get_peft_model(model, config, name)
            result = peft.set_peft_model_state_dict(
                wrapped, load_file(folder / "adapter_model.safetensors"), adapter_name=name
            )
            unexpected = [k for k in result.unexpected_keys if not k.endswith("base_layer.weight")]
            if unexpected:
                raise ValueError(f"PEFT did not load {folder}: {unexpected}")
            inner: Any = wrapped.base_model.model
            model = inner
    return model.eval()
