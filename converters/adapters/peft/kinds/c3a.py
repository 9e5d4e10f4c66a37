"""PEFT's C3A."""

from collections.abc import Mapping
from typing import Any

from jaxmix.converters.adapters.peft.file import File
from jaxmix.converters.adapters.peft.kind import ABOUT, SAVED, WHERE, Fields, Kind, Written
from jaxmix.converters.adapters.peft.patterns import spread
from jaxmix.converters.adapters.peft.shapes import Factors, need
from jaxmix.converters.adapters.peft.values import one_of
from jaxmix.errors import ShapeError
from jaxmix.families import C3A

__all__ = ["KIND"]


def _build(file: File, site: str, factors: Factors) -> C3A:
    """C3A: the blocks' size is the tensor's."""
    (kernels,) = need(factors, "c3a_kernel")
    if kernels.ndim != 3 or not kernels.size:
        raise ShapeError(f"c3a_kernel has shape {kernels.shape}, expected (out/b, in/b, b)")
    return C3A(kernels)


def _write(updates: Mapping[str, Any]) -> Written:
    sizes = {site: update.kernels.shape[2] for site, update in updates.items()}
    most, _ = spread(sizes)
    # Not spread's patterns: PEFT's must have a dot before them here, or be the whole name.
    patterns = {site: size for site, size in sizes.items() if size != most}
    return Written(
        {"block_size": most, "block_size_pattern": patterns},
        {f"{site}.c3a_kernel": update.kernels for site, update in updates.items()},
    )


KIND = Kind(
    Fields(
        {"bias": one_of("none", "all", "c3a_only"), **SAVED},
        ABOUT
        | (WHERE - {"exclude_modules"})
        | {"block_size", "block_size_pattern", "init_weights"},
    ),
    ("c3a_kernel",),
    _build,
    _write,
)
