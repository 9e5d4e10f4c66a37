"""PEFT's HRA."""

from collections.abc import Mapping
from typing import Any

from jaxmix.converters.adapters.common.shapes import SiteTensors, required
from jaxmix.converters.adapters.common.values import COUNT, FLAG, one_of
from jaxmix.converters.adapters.peft.file import File
from jaxmix.converters.adapters.peft.peft_type import (
    ABOUT,
    SAVED,
    WHERE,
    ConfigFields,
    PeftContent,
    PeftType,
)
from jaxmix.converters.adapters.peft.same import equal_value
from jaxmix.errors import ShapeError
from jaxmix.families import HRA, Update

__all__ = ["PEFT_TYPE"]


def _build(file: File, site: str, factors: SiteTensors) -> Update:
    """HRA; u is (in, r) for a linear layer, (in·k, r) for a convolution."""
    (u,) = required(factors, "hra_u")
    rank = file.config.values["r"]
    if u.ndim != 2 or u.shape[1] != rank or not u.size:
        raise ShapeError(f"hra_u has shape {u.shape}, expected (in, {rank}) by the config's r")
    return HRA(u, orthogonal=file.config.flag("apply_GS"))


def _write(updates: Mapping[str, Any]) -> PeftContent:
    fields = {
        "apply_GS": equal_value(updates, "apply_GS", lambda update: update.orthogonal),
        "r": equal_value(updates, "r", lambda update: update.u.shape[1]),
    }
    return PeftContent(fields, {f"{site}.hra_u": update.u for site, update in updates.items()})


PEFT_TYPE = PeftType(
    ConfigFields(
        {"apply_GS": FLAG, "bias": one_of("none", "all", "hra_only"), "r": COUNT, **SAVED},
        ABOUT | WHERE | {"init_weights"},
    ),
    ("hra_u",),
    _build,
    _write,
)
