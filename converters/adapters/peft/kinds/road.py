"""PEFT's RoAd."""

from collections.abc import Mapping
from typing import Any

from jaxmix.converters.adapters.peft.file import File
from jaxmix.converters.adapters.peft.kind import ABOUT, SAVED, Fields, Kind, Written
from jaxmix.converters.adapters.peft.same import same
from jaxmix.converters.adapters.peft.shapes import Factors, need, shapes
from jaxmix.converters.adapters.peft.values import COUNT, Check
from jaxmix.errors import ShapeError
from jaxmix.families import RoAd, Update

__all__ = ["KIND"]

_VARIANTS = {"road_1": 1, "road_2": 2, "road_4": 4}
_VARIANT = Check(" or ".join(map(repr, _VARIANTS)), lambda value: value in [*_VARIANTS])
_GROUP = Check("an even number from 2 on", lambda value: COUNT.holds(value) and value % 2 == 0)


def _build(file: File, site: str, factors: Factors) -> Update:
    """RoAd: as many scales as angles, in whole groups."""
    theta, alpha = need(factors, "road_theta", "road_alpha")
    values = file.config.values
    variant: Any = _VARIANTS[values["variant"]]
    group = values["group_size"]
    step = group * variant // 2
    if theta.ndim != 1 or theta.shape != alpha.shape or theta.size % step or not theta.size:
        raise ShapeError(f"{shapes(factors)}, expected (n,) each with n a multiple of {step}")
    return RoAd(theta, alpha, variant, group)


def _write(updates: Mapping[str, Any]) -> Written:
    names = {number: name for name, number in _VARIANTS.items()}
    fields = {
        "group_size": same(updates, "group_size", lambda update: update.group),
        "variant": names[same(updates, "variant", lambda update: update.variant)],
    }
    tensors: dict[str, Any] = {}
    for site, update in updates.items():
        tensors[f"{site}.road_theta"] = update.theta
        tensors[f"{site}.road_alpha"] = update.alpha
    return Written(fields, tensors)


KIND = Kind(
    Fields(
        {"group_size": _GROUP, "variant": _VARIANT, **SAVED},
        ABOUT | {"init_weights", "target_modules"},
    ),
    ("road_theta", "road_alpha"),
    _build,
    _write,
)
