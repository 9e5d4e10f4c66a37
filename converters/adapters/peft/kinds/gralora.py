"""PEFT's GraLoRA, plain and hybrid."""

from collections.abc import Mapping
from typing import Any

from jaxmix.converters.adapters.common.shapes import SiteTensors, describe_shapes, required
from jaxmix.converters.adapters.common.site_values import as_float
from jaxmix.converters.adapters.common.values import COUNT, FLAG, INTEGER, NUMBER, one_of
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
from jaxmix.errors import ShapeError
from jaxmix.families import GraLoRA

__all__ = ["PEFT_TYPE"]

# PEFT's names of the parameters, and the update's fields.
_TENSORS = {
    "gralora_A": "a",
    "gralora_B": "b",
    "gralora_A_general.weight": "a_general",
    "gralora_B_general.weight": "b_general",
}


def _build(file: File, site: str, factors: SiteTensors) -> GraLoRA:
    """GraLoRA; with a hybrid rank it also has the general factors."""
    config = file.config.values
    rank, hybrid, k = config["r"], config["hybrid_r"], config["gralora_k"]
    names = list(_TENSORS) if hybrid else list(_TENSORS)[:2]
    values = required(factors, *names)
    a, b = values[:2]
    is_grid = a.ndim == b.ndim == 3 and (len(a), len(b), a.shape[2], b.shape[1]) == (
        k,
        k,
        rank,
        rank,
    )
    is_whole = all(x.ndim == 2 and x.shape[axis] == hybrid for axis, x in enumerate(values[2:]))
    if not is_grid or not is_whole or len(factors) > len(names):
        raise ShapeError(
            f"{describe_shapes(factors)}, expected ({k}, in/{k}, {rank}) and ({k}, {rank}, out/{k})"
            + (
                f", general ({hybrid}, in) and (out, {hybrid})"
                if hybrid
                else ", and no general ones"
            )
        )
    scale = config["alpha"] / (rank + hybrid)
    return GraLoRA(a, b, scale, *values[2:], transposed=file.transposed)


def _write(updates: Mapping[str, Any]) -> PeftContent:
    def hybrid(update: Any) -> int:
        return 0 if update.a_general is None else update.a_general.shape[0]

    fields = {
        "alpha": equal_value(
            updates, "alpha", lambda up: as_float(up.scale) * (up.a.shape[2] + hybrid(up))
        ),
        "fan_in_fan_out": fan_in_fan_out(updates),
        "gralora_k": equal_value(updates, "gralora_k", lambda update: update.a.shape[0]),
        "hybrid_r": equal_value(updates, "hybrid_r", hybrid),
        "r": equal_value(updates, "r", lambda update: update.a.shape[2]),
    }
    tensors = {
        f"{site}.{name}": getattr(update, field)
        for site, update in updates.items()
        for name, field in _TENSORS.items()
    }
    return PeftContent(
        fields, {name: array for name, array in tensors.items() if array is not None}
    )


PEFT_TYPE = PeftType(
    ConfigFields(
        {
            "alpha": NUMBER,
            "bias": one_of("none", "all", "gralora_only"),
            "fan_in_fan_out": FLAG,
            "gralora_k": COUNT,
            "hybrid_r": INTEGER,
            "r": COUNT,
            **SAVED,
        },
        ABOUT | (WHERE - {"exclude_modules"}) | {"gralora_dropout", "init_weights"},
    ),
    tuple(_TENSORS),
    _build,
    _write,
)
