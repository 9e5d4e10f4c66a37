"""PEFT's GraLoRA, plain and hybrid."""

from collections.abc import Mapping
from typing import Any

from jaxmix.converters.adapters.peft.file import File
from jaxmix.converters.adapters.peft.kind import ABOUT, SAVED, WHERE, Fields, Kind, Written
from jaxmix.converters.adapters.peft.patterns import number
from jaxmix.converters.adapters.peft.same import fan_in_fan_out, same
from jaxmix.converters.adapters.peft.shapes import Factors, need, shapes
from jaxmix.converters.adapters.peft.values import COUNT, FLAG, INTEGER, NUMBER, one_of
from jaxmix.errors import ShapeError
from jaxmix.families import GraLoRA

__all__ = ["KIND"]

# By PEFT's name for the end of the key, the update's field.
_TENSORS = {
    "gralora_A": "a",
    "gralora_B": "b",
    "gralora_A_general.weight": "a_general",
    "gralora_B_general.weight": "b_general",
}


def _build(file: File, site: str, factors: Factors) -> GraLoRA:
    """GraLoRA; with a hybrid rank the general factors are there too."""
    said = file.config.values
    rank, hybrid, k = said["r"], said["hybrid_r"], said["gralora_k"]
    names = list(_TENSORS) if hybrid else list(_TENSORS)[:2]
    made = need(factors, *names)
    a, b = made[:2]
    is_grid = a.ndim == b.ndim == 3 and (len(a), len(b), a.shape[2], b.shape[1]) == (
        k,
        k,
        rank,
        rank,
    )
    is_whole = all(x.ndim == 2 and x.shape[axis] == hybrid for axis, x in enumerate(made[2:]))
    if not is_grid or not is_whole or len(factors) > len(names):
        raise ShapeError(
            f"{shapes(factors)}, expected ({k}, in/{k}, {rank}) and ({k}, {rank}, out/{k})"
            + (f", general ({hybrid}, in) and (out, {hybrid})" if hybrid else ", no general ones")
        )
    scale = said["alpha"] / (rank + hybrid)
    return GraLoRA(a, b, scale, *made[2:], transposed=file.transposed)


def _write(updates: Mapping[str, Any]) -> Written:
    def hybrid(update: Any) -> int:
        return 0 if update.a_general is None else update.a_general.shape[0]

    fields = {
        "alpha": same(updates, "alpha", lambda up: number(up.scale) * (up.a.shape[2] + hybrid(up))),
        "fan_in_fan_out": fan_in_fan_out(updates),
        "gralora_k": same(updates, "gralora_k", lambda update: update.a.shape[0]),
        "hybrid_r": same(updates, "hybrid_r", hybrid),
        "r": same(updates, "r", lambda update: update.a.shape[2]),
    }
    tensors = {
        f"{site}.{name}": getattr(update, field)
        for site, update in updates.items()
        for name, field in _TENSORS.items()
    }
    return Written(fields, {name: array for name, array in tensors.items() if array is not None})


KIND = Kind(
    Fields(
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
