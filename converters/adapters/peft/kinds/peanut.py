"""PEFT's PEANuT."""

from collections.abc import Mapping
from typing import Any

from jaxmix.converters.adapters.common.shapes import SiteTensors, describe_shapes, required
from jaxmix.converters.adapters.common.values import COUNT, NUMBER, Check, one_of
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
from jaxmix.families import PEANuT, Update
from jaxmix.families.peanut import ACTIVATIONS

__all__ = ["PEFT_TYPE"]

_DEPTH = Check(
    "a non-negative integer",
    lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= 0,
)
_LEVELS = ("peanut_encoders", "peanut_decoders")


def _build(file: File, site: str, factors: SiteTensors) -> Update:
    """PEANuT; two layers of weights and `depth` levels between them."""
    values = file.config.values
    rank, depth = values["r"], values["depth"]
    a, b = required(factors, "peanut_A.weight", "peanut_B.weight")
    if len(factors) != 2 + 2 * depth:
        raise ShapeError(
            f"{describe_shapes(factors)}, expected {depth} encoders and decoders by the config's "
            f"depth"
        )
    encoders, decoders = (
        required(factors, *(f"{name}.{i}.weight" for i in range(depth))) for name in _LEVELS
    )
    fits = a.ndim == b.ndim == 2 and len(a) == b.shape[1] == rank and a.size > 0
    if not fits or any(x.shape != (rank, rank) for x in (*encoders, *decoders)):
        raise ShapeError(
            f"{describe_shapes(factors)}, expected ({rank}, out), (out, {rank}) and ({rank}, "
            f"{rank})"
        )
    return PEANuT(a, b, encoders, decoders, values["scaling"], values["act_fn"])


def _write(updates: Mapping[str, Any]) -> PeftContent:
    fields = {
        "act_fn": equal_value(updates, "act_fn", lambda update: update.activation),
        "depth": equal_value(updates, "depth", lambda update: len(update.encoders)),
        "r": equal_value(updates, "r", lambda update: update.a.shape[0]),
        "scaling": equal_value(updates, "scaling", lambda update: float(update.scale)),
    }
    tensors: dict[str, Any] = {}
    for site, update in updates.items():
        tensors |= {f"{site}.peanut_A.weight": update.a, f"{site}.peanut_B.weight": update.b}
        for name, layers in zip(_LEVELS, (update.encoders, update.decoders), strict=True):
            tensors |= {f"{site}.{name}.{i}.weight": x for i, x in enumerate(layers)}
    return PeftContent(fields, tensors)


PEFT_TYPE = PeftType(
    ConfigFields(
        {
            "act_fn": one_of(*ACTIVATIONS)._replace(is_required=True),
            "depth": _DEPTH,
            "r": COUNT,
            "scaling": NUMBER,
            **SAVED,
        },
        ABOUT | WHERE | {"init_weights"},
    ),
    ("peanut_A.weight", "peanut_B.weight", *(f"{name}.*.weight" for name in _LEVELS)),
    _build,
    _write,
)
