"""PEFT's PEANuT."""

from collections.abc import Mapping
from typing import Any

from jaxmix.converters.adapters.peft.file import File
from jaxmix.converters.adapters.peft.kind import ABOUT, SAVED, WHERE, Fields, Kind, Written
from jaxmix.converters.adapters.peft.same import same
from jaxmix.converters.adapters.peft.shapes import Factors, need, shapes
from jaxmix.converters.adapters.peft.values import COUNT, NUMBER, Check, one_of
from jaxmix.errors import ShapeError
from jaxmix.families import PEANuT, Update
from jaxmix.families.peanut import ACTIVATIONS

__all__ = ["KIND"]

_DEPTH = Check(
    "a whole number from 0 on",
    lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= 0,
)
_LEVELS = ("peanut_encoders", "peanut_decoders")


def _build(file: File, site: str, factors: Factors) -> Update:
    """PEANuT: two layers of weights and `depth` levels between them."""
    values = file.config.values
    rank, depth = values["r"], values["depth"]
    a, b = need(factors, "peanut_A.weight", "peanut_B.weight")
    if len(factors) != 2 + 2 * depth:
        raise ShapeError(f"{shapes(factors)}, expected {depth} encoders and decoders by its depth")
    encoders, decoders = (
        need(factors, *(f"{name}.{i}.weight" for i in range(depth))) for name in _LEVELS
    )
    fits = a.ndim == b.ndim == 2 and len(a) == b.shape[1] == rank and a.size > 0
    if not fits or any(x.shape != (rank, rank) for x in (*encoders, *decoders)):
        raise ShapeError(
            f"{shapes(factors)}, expected ({rank}, out), (out, {rank}) and ({rank}, {rank})"
        )
    return PEANuT(a, b, encoders, decoders, values["scaling"], values["act_fn"])


def _write(updates: Mapping[str, Any]) -> Written:
    fields = {
        "act_fn": same(updates, "act_fn", lambda update: update.activation),
        "depth": same(updates, "depth", lambda update: len(update.encoders)),
        "r": same(updates, "r", lambda update: update.a.shape[0]),
        "scaling": same(updates, "scaling", lambda update: float(update.scale)),
    }
    tensors: dict[str, Any] = {}
    for site, update in updates.items():
        tensors |= {f"{site}.peanut_A.weight": update.a, f"{site}.peanut_B.weight": update.b}
        for name, layers in zip(_LEVELS, (update.encoders, update.decoders), strict=True):
            tensors |= {f"{site}.{name}.{i}.weight": x for i, x in enumerate(layers)}
    return Written(fields, tensors)


KIND = Kind(
    Fields(
        {
            "act_fn": one_of(*ACTIVATIONS)._replace(is_needed=True),
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
