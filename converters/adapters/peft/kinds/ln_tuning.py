"""PEFT's LN_TUNING: fully trained norms."""

from collections.abc import Mapping
from typing import Any

from jaxmix.converters.adapters.common.shapes import SiteTensors
from jaxmix.converters.adapters.peft.file import File
from jaxmix.converters.adapters.peft.peft_type import (
    ABOUT,
    SAVED,
    ConfigFields,
    PeftContent,
    PeftType,
)
from jaxmix.families import Replace, Update

__all__ = ["PEFT_TYPE"]

_LEAVES = ("weight", "bias")


def _build(file: File, site: str, factors: SiteTensors) -> Update:
    """PEFT trains a copy of the layer, whose leaves replace the base's."""
    return Replace(*(factors.get(f"ln_tuning_layers.{leaf}") for leaf in _LEAVES))


def _write(updates: Mapping[str, Any]) -> PeftContent:
    tensors = {
        f"{site}.ln_tuning_layers.{leaf}": getattr(update, leaf)
        for site, update in updates.items()
        for leaf in _LEAVES
        if getattr(update, leaf) is not None
    }
    return PeftContent({}, tensors)


PEFT_TYPE = PeftType(
    ConfigFields(dict(SAVED), ABOUT | {"exclude_modules", "target_modules"}),
    tuple(f"ln_tuning_layers.{leaf}" for leaf in _LEAVES),
    _build,
    _write,
)
