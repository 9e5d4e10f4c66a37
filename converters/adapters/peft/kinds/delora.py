"""PEFT's DeLoRA."""

from collections.abc import Mapping
from typing import Any

from jaxmix.converters.adapters.peft.file import File
from jaxmix.converters.adapters.peft.kind import ABOUT, SAVED, WHERE, Fields, Kind, Written
from jaxmix.converters.adapters.peft.patterns import spread
from jaxmix.converters.adapters.peft.shapes import Factors, check_ranks, need, shapes
from jaxmix.converters.adapters.peft.values import COUNT, RANKS, one_of
from jaxmix.errors import ShapeError
from jaxmix.families import DeLoRA

__all__ = ["KIND"]

# By PEFT's name for the end of the key, the update's field.
_TENSORS = {
    "delora_A": "a",
    "delora_B": "b",
    "delora_lambda": "bound",
    "delora_w_norm": "norms",
}


def _build(file: File, site: str, factors: Factors) -> DeLoRA:
    """DeLoRA: λ is trained, and the config's is where it began."""
    made = need(factors, *_TENSORS)
    rank = file.config.by_site("rank_pattern", "r", site)
    check_ranks(factors, {"delora_A": (2, 0), "delora_B": (2, 1)}, rank)
    if made[2].shape != (1,) or made[3].ndim != 1:
        raise ShapeError(f"{shapes(factors)}, expected delora_lambda (1,), delora_w_norm (in,)")
    return DeLoRA(*made)


def _write(updates: Mapping[str, Any]) -> Written:
    rank, patterns = spread({site: update.a.shape[0] for site, update in updates.items()})
    return Written(
        {"r": rank, "rank_pattern": patterns},
        {
            f"{site}.{name}": getattr(update, field)
            for site, update in updates.items()
            for name, field in _TENSORS.items()
        },
    )


KIND = Kind(
    Fields(
        {"bias": one_of("none", "all", "delora_only"), "r": COUNT, "rank_pattern": RANKS, **SAVED},
        ABOUT | WHERE | {"delora_lambda", "init_weights", "lambda_pattern", "module_dropout"},
    ),
    tuple(_TENSORS),
    _build,
    _write,
)
