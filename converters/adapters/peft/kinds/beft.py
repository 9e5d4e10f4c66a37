"""PEFT's BEFT, a vector that is added to the bias."""

from collections.abc import Mapping
from typing import Any

from jaxmix.converters.adapters.common.shapes import SiteTensors, required
from jaxmix.converters.adapters.peft.file import File
from jaxmix.converters.adapters.peft.peft_type import (
    ABOUT,
    SAVED,
    ConfigFields,
    PeftContent,
    PeftType,
)
from jaxmix.converters.adapters.peft.same import refuse_unless
from jaxmix.errors import ShapeError
from jaxmix.families import Delta, Update

__all__ = ["PEFT_TYPE"]


def _build(file: File, site: str, factors: SiteTensors) -> Update:
    """BEFT; a (1, out) that is added to the layer's output."""
    (bias,) = required(factors, "beft_bias")
    if bias.ndim != 2 or bias.shape[0] != 1 or not bias.size:
        raise ShapeError(f"beft_bias has shape {bias.shape}, expected (1, out)")
    return Delta(bias=bias.reshape(-1))


def _write(updates: Mapping[str, Any]) -> PeftContent:
    refuse_unless(updates, lambda update: update.weight is None, "PEFT's BEFT changes no weight")
    return PeftContent(
        {}, {f"{site}.beft_bias": x.bias.reshape(1, -1) for site, x in updates.items()}
    )


PEFT_TYPE = PeftType(
    ConfigFields(dict(SAVED), ABOUT | {"init_weights", "target_modules"}),
    ("beft_bias",),
    _build,
    _write,
)
