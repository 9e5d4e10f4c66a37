"""PEFT's DEFT, and PaRa, which is a form of it."""

from collections.abc import Mapping
from typing import Any

from jaxmix.converters.adapters.peft.file import File
from jaxmix.converters.adapters.peft.kind import ABOUT, SAVED, WHERE, Fields, Kind, Written
from jaxmix.converters.adapters.peft.same import fan_in_fan_out, same
from jaxmix.converters.adapters.peft.shapes import Factors, need
from jaxmix.converters.adapters.peft.values import COUNT, FLAG, NUMBER, one_of
from jaxmix.errors import CheckpointError, ShapeError, UnsupportedError
from jaxmix.families import DEFT, Update

__all__ = ["KIND"]


def _build(file: File, site: str, factors: Factors) -> Update:
    """DEFT: a rank beyond the layer's outputs PEFT takes down to their number."""
    (p,) = need(factors, "deft_P")
    values, is_para, injected = file.config.values, file.config.flag("para"), factors.get("deft_R")
    if (injected is None) != is_para:
        found, said = "missing" if injected is None else "there", str(is_para).lower()
        raise CheckpointError(f"deft_R is {found}, but para is {said} in the config")
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


def _write(updates: Mapping[str, Any]) -> Written:
    rank = max(update.p.shape[1] for update in updates.values())
    if off := [site for site, x in updates.items() if x.p.shape[1] != min(rank, len(x.p))]:
        same({site: updates[site].p.shape[1] for site in (*off, *updates)}, "r", lambda x: x)
    fields = {
        "alpha": _alpha(updates),
        "decomposition_method": same(updates, "decomposition_method", lambda x: x.method),
        "fan_in_fan_out": fan_in_fan_out(updates),
        "para": same(updates, "para", lambda x: x.injected is None),
        "r": rank,
    }
    tensors = {f"{site}.deft_P": update.p for site, update in updates.items()}
    tensors |= {
        f"{site}.deft_R": x.injected for site, x in updates.items() if x.injected is not None
    }
    return Written(fields, tensors)


def _alpha(updates: Mapping[str, Any]) -> float | None:
    """Alpha; None, which is a scale of one, where all have that."""
    if all(float(update.scale) == 1 for update in updates.values()):
        return None
    alpha = same(updates, "alpha", lambda x: round(float(x.scale) * x.p.shape[1], 9))
    if not alpha:
        raise UnsupportedError("a scale of 0 PEFT takes for no alpha; leave the adapter out")
    return alpha


KIND = Kind(
    Fields(
        {
            "alpha": NUMBER._replace(is_needed=False),
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
