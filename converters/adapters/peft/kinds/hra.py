"""PEFT's HRA."""

from collections.abc import Mapping
from typing import Any

from jaxmix.converters.adapters.peft.file import File
from jaxmix.converters.adapters.peft.kind import ABOUT, SAVED, WHERE, Fields, Kind, Written
from jaxmix.converters.adapters.peft.same import same
from jaxmix.converters.adapters.peft.shapes import Factors, need
from jaxmix.converters.adapters.peft.values import COUNT, FLAG, one_of
from jaxmix.errors import ShapeError
from jaxmix.families import HRA, Update

__all__ = ["KIND"]


def _build(file: File, site: str, factors: Factors) -> Update:
    """HRA: a linear layer's (in, r), a convolution's (in·k, r)."""
    (u,) = need(factors, "hra_u")
    rank = file.config.values["r"]
    if u.ndim != 2 or u.shape[1] != rank or not u.size:
        raise ShapeError(f"hra_u has shape {u.shape}, expected (in, {rank}) by the config's r")
    return HRA(u, orthogonal=file.config.flag("apply_GS"))


def _write(updates: Mapping[str, Any]) -> Written:
    fields = {
        "apply_GS": same(updates, "apply_GS", lambda update: update.orthogonal),
        "r": same(updates, "r", lambda update: update.u.shape[1]),
    }
    return Written(fields, {f"{site}.hra_u": update.u for site, update in updates.items()})


KIND = Kind(
    Fields(
        {"apply_GS": FLAG, "bias": one_of("none", "all", "hra_only"), "r": COUNT, **SAVED},
        ABOUT | WHERE | {"init_weights"},
    ),
    ("hra_u",),
    _build,
    _write,
)
