"""PEFT's DEFT and its form PaRa."""

from collections.abc import Mapping
from typing import Any

from jaxmix.converters.adapters.common.shapes import SiteTensors, required
from jaxmix.converters.adapters.common.values import COUNT, FLAG, NUMBER, one_of
from jaxmix.converters.adapters.peft.file import File
from jaxmix.converters.adapters.peft.peft_type import (
    ABOUT,
    SAVED,
    WHERE,
    ConfigFields,
    PeftContent,
    PeftType,
)
from jaxmix.converters.adapters.peft.same import equal_value, fan_in_fan_out
from jaxmix.errors import CheckpointError, ShapeError, UnsupportedError
from jaxmix.families import DEFT, Update

__all__ = ["PEFT_TYPE"]


def _build(file: File, site: str, factors: SiteTensors) -> Update:
    """DEFT; PEFT limits the rank to the number of the layer's outputs."""
    (p,) = required(factors, "deft_P")
    values, is_para, injected = file.config.values, file.config.flag("para"), factors.get("deft_R")
    if (injected is None) != is_para:
        state, setting = "missing" if injected is None else "present", str(is_para).lower()
        raise CheckpointError(f"deft_R is {state}, but para is {setting} in the config")
    rank = min(values["r"], p.shape[0]) if p.ndim == 2 else values["r"]
    if p.ndim != 2 or p.shape[1] != rank or not p.size:
        raise ShapeError(f"deft_P has shape {p.shape}, expected (out, {rank}) by the config's r")
    if injected is not None and (injected.ndim != 2 or len(injected) != rank):
        raise ShapeError(f"deft_R has shape {injected.shape}, expected ({rank}, in) by its r")
    alpha = values.get("alpha")
    return DEFT(
        p,
        injected,
        alpha / rank if alpha else 1.0,
        values.get("decomposition_method") or "relu",
        file.transposed,
    )


def _write(updates: Mapping[str, Any]) -> PeftContent:
    rank = max(update.p.shape[1] for update in updates.values())
    if off := [site for site, x in updates.items() if x.p.shape[1] != min(rank, len(x.p))]:
        equal_value({site: updates[site].p.shape[1] for site in (*off, *updates)}, "r", lambda x: x)
    fields = {
        "alpha": _alpha(updates),
        "decomposition_method": equal_value(updates, "decomposition_method", lambda x: x.method),
        "fan_in_fan_out": fan_in_fan_out(updates),
        "para": equal_value(updates, "para", lambda x: x.injected is None),
        "r": rank,
    }
    tensors = {f"{site}.deft_P": update.p for site, update in updates.items()}
    tensors |= {
        f"{site}.deft_R": x.injected for site, x in updates.items() if x.injected is not None
    }
    return PeftContent(fields, tensors)


def _alpha(updates: Mapping[str, Any]) -> float | None:
    """Alpha; None, a scale of one, if that is the scale of all."""
    if all(float(update.scale) == 1 for update in updates.values()):
        return None
    alpha = equal_value(updates, "alpha", lambda x: round(float(x.scale) * x.p.shape[1], 9))
    if not alpha:
        raise UnsupportedError("PEFT reads a scale of 0 as no alpha; leave the adapter out")
    return alpha


PEFT_TYPE = PeftType(
    ConfigFields(
        {
            "alpha": NUMBER._replace(is_required=False),
            "bias": one_of("none", "all", "deft_only"),
            "decomposition_method": one_of("relu", "qr"),
            "fan_in_fan_out": FLAG,
            "para": FLAG,
            "r": COUNT,
            **SAVED,
        },
        ABOUT | WHERE | {"deft_dropout", "init_scale", "init_weights"},
    ),
    ("deft_P", "deft_R"),
    _build,
    _write,
)
