"""PEFT's DeLoRA."""

from collections.abc import Mapping
from typing import Any

from jaxmix.converters.adapters.common.shapes import (
    SiteTensors,
    check_ranks,
    describe_shapes,
    required,
)
from jaxmix.converters.adapters.common.site_values import common_value
from jaxmix.converters.adapters.common.values import COUNT, RANKS, one_of
from jaxmix.converters.adapters.peft.file import File
from jaxmix.converters.adapters.peft.peft_type import (
    ABOUT,
    SAVED,
    WHERE,
    ConfigFields,
    PeftContent,
    PeftType,
)
from jaxmix.errors import ShapeError
from jaxmix.families import DeLoRA

__all__ = ["PEFT_TYPE"]

# PEFT's names of the parameters, and the update's fields.
_TENSORS = {
    "delora_A": "a",
    "delora_B": "b",
    "delora_lambda": "bound",
    "delora_w_norm": "norms",
}


def _build(file: File, site: str, factors: SiteTensors) -> DeLoRA:
    """DeLoRA; λ is trained, and the config has only its initial value."""
    fields = required(factors, *_TENSORS)
    rank = file.config.by_site("rank_pattern", "r", site)
    check_ranks(factors, {"delora_A": (2, 0), "delora_B": (2, 1)}, rank)
    if fields[2].shape != (1,) or fields[3].ndim != 1:
        raise ShapeError(
            f"{describe_shapes(factors)}, expected delora_lambda (1,), delora_w_norm (in,)"
        )
    return DeLoRA(*fields)


def _write(updates: Mapping[str, Any]) -> PeftContent:
    rank, patterns = common_value({site: update.a.shape[0] for site, update in updates.items()})
    return PeftContent(
        {"r": rank, "rank_pattern": patterns},
        {
            f"{site}.{name}": getattr(update, field)
            for site, update in updates.items()
            for name, field in _TENSORS.items()
        },
    )


PEFT_TYPE = PeftType(
    ConfigFields(
        {"bias": one_of("none", "all", "delora_only"), "r": COUNT, "rank_pattern": RANKS, **SAVED},
        ABOUT | WHERE | {"delora_lambda", "init_weights", "lambda_pattern", "module_dropout"},
    ),
    tuple(_TENSORS),
    _build,
    _write,
)
