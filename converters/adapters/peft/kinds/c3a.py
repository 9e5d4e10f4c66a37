"""PEFT's C3A."""

from collections.abc import Mapping
from typing import Any

from jaxmix.converters.adapters.common.shapes import SiteTensors, required
from jaxmix.converters.adapters.common.site_values import common_value
from jaxmix.converters.adapters.common.values import one_of
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
from jaxmix.families import C3A

__all__ = ["PEFT_TYPE"]


def _build(file: File, site: str, factors: SiteTensors) -> C3A:
    """C3A; the size of blocks is that of the tensor."""
    (kernels,) = required(factors, "c3a_kernel")
    if kernels.ndim != 3 or not kernels.size:
        raise ShapeError(f"c3a_kernel has shape {kernels.shape}, expected (out/b, in/b, b)")
    return C3A(kernels)


def _write(updates: Mapping[str, Any]) -> PeftContent:
    sizes = {site: update.kernels.shape[2] for site, update in updates.items()}
    most, _ = common_value(sizes)
    # Not the patterns of `common_value`: here PEFT requires a dot before them, or the whole name.
    patterns = {site: size for site, size in sizes.items() if size != most}
    return PeftContent(
        {"block_size": most, "block_size_pattern": patterns},
        {f"{site}.c3a_kernel": update.kernels for site, update in updates.items()},
    )


PEFT_TYPE = PeftType(
    ConfigFields(
        {"bias": one_of("none", "all", "c3a_only"), **SAVED},
        ABOUT
        | (WHERE - {"exclude_modules"})
        | {"block_size", "block_size_pattern", "init_weights"},
    ),
    ("c3a_kernel",),
    _build,
    _write,
)
