"""LoRAs as diffusers writes them: PEFT's names, one scale, and a LoraConfig in the metadata."""

import re
from dataclasses import replace
from typing import Any

import numpy as np

from jaxmix.adapter import Adapter
from jaxmix.converters.adapters.common.equal_ranks import with_equal_ranks
from jaxmix.converters.adapters.common.shapes import SiteTensors
from jaxmix.converters.adapters.common.site_values import as_float
from jaxmix.errors import UnsupportedError
from jaxmix.families import Delta, LoRA, Normed, Together, Update

__all__ = ["PEFT_NAMES", "add_to_config", "as_lora", "with_unit_scale"]


def as_lora(update: Update) -> Update:
    """A LoRA or DoRA in PEFT's form; any other update as it is."""
    match update:
        case Normed(update=LoRA(magnitude=None) as lora, axis="out"):
            return replace(lora, magnitude=update.magnitude)
        case Together(parts=(LoRA(bias=None) as lora, Delta(weight=None) as bias)):
            delta = np.asarray(bias.bias)
            scaled: Any = delta / np.asarray(lora.scale, delta.dtype)
            return replace(lora, bias=scaled)
        case _:
            return update


def with_unit_scale(adapter: Adapter) -> Adapter:
    """Gives all LoRAs one rank and the scale 1, with the strength multiplied in."""
    strength = as_float(adapter.strength)
    loras: dict[str, Any] = dict(adapter.updates)
    if strength != 1 and any(update.magnitude is not None for update in loras.values()):
        return adapter  # refused later: a DoRA has no strength
    strong = {s: replace(up, scale=strength * as_float(up.scale)) for s, up in loras.items()}
    return replace(adapter, updates=with_equal_ranks(strong, 1.0), strength=1.0)


PEFT_NAMES = {
    "lora_down.weight": "lora_A.weight",
    "lora_up.weight": "lora_B.weight",
    "lora_up.bias": "lora_B.bias",
    "dora_scale": "lora_magnitude_vector",
}


def add_to_config(config: dict[str, Any], module: str, factors: SiteTensors) -> None:
    """Adds a module's rank and alpha to the LoraConfig of its model."""
    down = factors["lora_down.weight"]
    rank, alpha = int(down.shape[0]), float(factors["alpha"])
    flags = {"use_dora": "dora_scale" in factors, "lora_bias": "lora_up.bias" in factors}
    if not config:
        patterns: dict[str, Any] = {"rank_pattern": {}, "alpha_pattern": {}, "target_modules": []}
        config |= {"r": rank, "lora_alpha": alpha, **patterns, **flags, "use_rslora": False}
    if any(config[key] != value for key, value in flags.items()):
        raise UnsupportedError(
            f"{module}: some modules of one model have DoRA's norm, or a bias, and others do not; "
            "diffusers has one flag for all. Export them as separate files."
        )
    # PEFT matches the end of a name; the ^ makes it match the whole name.
    pattern = f"^{re.escape(module)}"
    if rank != config["r"]:
        config["rank_pattern"][pattern] = rank
    if alpha != config["lora_alpha"]:
        config["alpha_pattern"][pattern] = alpha
    config["target_modules"].append(module)
