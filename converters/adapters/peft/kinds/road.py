"""PEFT's RoAd."""

from collections.abc import Mapping
from typing import Any

from jaxmix.converters.adapters.common.shapes import SiteTensors, describe_shapes, required
from jaxmix.converters.adapters.common.values import COUNT, Check
from jaxmix.converters.adapters.peft.file import File
from jaxmix.converters.adapters.peft.peft_type import (
    ABOUT,
    SAVED,
    ConfigFields,
    PeftContent,
    PeftType,
)
from jaxmix.converters.adapters.peft.same import equal_value
from jaxmix.errors import ShapeError
from jaxmix.families import RoAd, Update

__all__ = ["PEFT_TYPE"]

_VARIANTS = {"road_1": 1, "road_2": 2, "road_4": 4}
_VARIANT = Check(" or ".join(map(repr, _VARIANTS)), lambda value: value in [*_VARIANTS])
_GROUP = Check("a positive even integer", lambda value: COUNT.holds(value) and value % 2 == 0)


def _build(file: File, site: str, factors: SiteTensors) -> Update:
    """RoAd; as many scales as angles, in whole groups."""
    theta, alpha = required(factors, "road_theta", "road_alpha")
    values = file.config.values
    variant: Any = _VARIANTS[values["variant"]]
    group = values["group_size"]
    step = group * variant // 2
    if theta.ndim != 1 or theta.shape != alpha.shape or theta.size % step or not theta.size:
        raise ShapeError(
            f"{describe_shapes(factors)}, expected (n,) each with n a multiple of {step}"
        )
    return RoAd(theta, alpha, variant, group)


def _write(updates: Mapping[str, Any]) -> PeftContent:
    names = {number: name for name, number in _VARIANTS.items()}
    fields = {
        "group_size": equal_value(updates, "group_size", lambda update: update.group),
        "variant": names[equal_value(updates, "variant", lambda update: update.variant)],
    }
    tensors: dict[str, Any] = {}
    for site, update in updates.items():
        tensors[f"{site}.road_theta"] = update.theta
        tensors[f"{site}.road_alpha"] = update.alpha
    return PeftContent(fields, tensors)


PEFT_TYPE = PeftType(
    ConfigFields(
        {"group_size": _GROUP, "variant": _VARIANT, **SAVED},
        ABOUT | {"init_weights", "target_modules"},
    ),
    ("road_theta", "road_alpha"),
    _build,
    _write,
)
