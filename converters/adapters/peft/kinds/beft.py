"""PEFT's BEFT: a vector added to the bias."""

from collections.abc import Mapping
from typing import Any

from jaxmix.converters.adapters.peft.file import File
from jaxmix.converters.adapters.peft.kind import ABOUT, SAVED, Fields, Kind, Written
from jaxmix.converters.adapters.peft.same import unless
from jaxmix.converters.adapters.peft.shapes import Factors, need
from jaxmix.errors import ShapeError
from jaxmix.families import Delta, Update

__all__ = ["KIND"]


def _build(file: File, site: str, factors: Factors) -> Update:
    """BEFT: (1, out), added to what the layer gives."""
    (bias,) = need(factors, "beft_bias")
    if bias.ndim != 2 or bias.shape[0] != 1 or not bias.size:
        raise ShapeError(f"beft_bias has shape {bias.shape}, expected (1, out)")
    return Delta(bias=bias.reshape(-1))


def _write(updates: Mapping[str, Any]) -> Written:
    unless(updates, lambda update: update.weight is None, "PEFT's BEFT changes no weight")
    return Written({}, {f"{site}.beft_bias": x.bias.reshape(1, -1) for site, x in updates.items()})


KIND = Kind(
    Fields(dict(SAVED), ABOUT | {"init_weights", "target_modules"}),
    ("beft_bias",),
    _build,
    _write,
)
