"""PEFT's LN tuning: norms trained whole."""

from collections.abc import Mapping
from typing import Any

from jaxmix.converters.adapters.peft.file import File
from jaxmix.converters.adapters.peft.kind import ABOUT, SAVED, Fields, Kind, Written
from jaxmix.converters.adapters.peft.shapes import Factors
from jaxmix.families import Replace, Update

__all__ = ["KIND"]

_LEAVES = ("weight", "bias")


def _build(file: File, site: str, factors: Factors) -> Update:
    """PEFT makes a copy of the layer and trains that: its leaves replace the base's."""
    return Replace(*(factors.get(f"ln_tuning_layers.{leaf}") for leaf in _LEAVES))


def _write(updates: Mapping[str, Any]) -> Written:
    tensors = {
        f"{site}.ln_tuning_layers.{leaf}": getattr(update, leaf)
        for site, update in updates.items()
        for leaf in _LEAVES
        if getattr(update, leaf) is not None
    }
    return Written({}, tensors)


KIND = Kind(
    Fields(dict(SAVED), ABOUT | {"exclude_modules", "target_modules"}),
    tuple(f"ln_tuning_layers.{leaf}" for leaf in _LEAVES),
    _build,
    _write,
)
