"""PEFT's IA3."""

import re
from collections.abc import Mapping
from typing import Any

from jaxmix.converters.adapters.common.shapes import SiteTensors, required
from jaxmix.converters.adapters.common.values import FLAG, NAMES, Check
from jaxmix.converters.adapters.peft.file import File
from jaxmix.converters.adapters.peft.peft_type import (
    ABOUT,
    SAVED,
    ConfigFields,
    PeftContent,
    PeftType,
)
from jaxmix.converters.adapters.peft.same import fan_in_fan_out
from jaxmix.errors import CheckpointError, ShapeError, UnsupportedError
from jaxmix.families import IA3, Update
from jaxmix.untrusted.patterns import is_match

__all__ = ["PEFT_TYPE"]


def _are_modules(value: Any) -> bool:
    """Whether a value names modules, by a list or by a regular expression."""
    if not isinstance(value, str):
        return NAMES.holds(value)
    try:
        is_match(value, "", full=True)
    except re.error:
        return False
    return True


_MODULES = Check("a regular expression or a list of module names", _are_modules, False)


def _build(file: File, site: str, factors: SiteTensors) -> Update:
    """IA3; a linear layer's vector has the axis that it scales, a convolution's is (1, n, …)."""
    (vector,) = required(factors, "ia3_l")
    on_input, shape = _is_feedforward(file, site), vector.shape
    if vector.ndim > 2 and on_input is None:
        raise CheckpointError(
            "the config has no feedforward_modules, which determine whether a convolution's ia3_l "
            "scales inputs or outputs. Set them, to [] if there are none"
        )
    if vector.ndim == 2 and (on_input is None or 1 not in shape):
        on_input = shape[0] == 1
    along = 1 if on_input or vector.ndim > 2 else 0
    if vector.ndim < 2 or vector.size != shape[along] or not vector.size:
        expected = "(1, n), or (1, n, 1, …)" if along else "(n, 1), or (1, n, 1, …)"
        side = "inputs" if on_input else "outputs"
        raise ShapeError(f"ia3_l has shape {shape}, expected {expected}: it scales {side}")
    if along and on_input and vector.ndim > 2:
        _check_groups(file, site, vector.size)
    transposed = file.transposed if vector.ndim == 2 else False
    return IA3(vector.reshape(-1), bool(on_input), vector.ndim - 2, transposed)


def _check_groups(file: File, site: str, inputs: int) -> None:
    """Refuses grouped convolutions, where a column of the weight has several inputs.

    Neither the file nor the position of a column determines the group.
    """
    shape = file.shape(site)
    if len(shape) < 3 or shape[1] != inputs:
        raise UnsupportedError(
            f"ia3_l scales {inputs} inputs, and the base's weight has shape {shape}: in a grouped "
            "convolution each group has its own scales, which scaling the weight's columns can't "
            "express. Train it without that layer, or scale its outputs"
        )


def _is_feedforward(file: File, site: str) -> bool | None:
    """Whether ``feedforward_modules`` include a site; None if the field is absent.

    As in PEFT, the names in a list match any end of the path, also parts of names.
    """
    modules = file.config.values.get("feedforward_modules")
    if modules is None:
        return None
    if isinstance(modules, str):
        return is_match(modules, site, full=True)
    return site.endswith(tuple(modules))


def _write(updates: Mapping[str, Any]) -> PeftContent:
    """Writes the full names of sites that scale inputs as a regular expression."""
    inputs = [re.escape(site) for site, update in updates.items() if update.on_input]
    fields = {
        "fan_in_fan_out": fan_in_fan_out(updates),
        "feedforward_modules": "|".join(inputs) if inputs else [],
    }
    return PeftContent(
        fields, {f"{site}.ia3_l": _shaped(update) for site, update in updates.items()}
    )


def _shaped(update: IA3) -> Any:
    """The vector with PEFT's axes of length one."""
    if update.axes:
        return update.vector.reshape(1, -1, *(1,) * update.axes)
    return update.vector.reshape((1, -1) if update.on_input else (-1, 1))


PEFT_TYPE = PeftType(
    ConfigFields(
        {"fan_in_fan_out": FLAG, "feedforward_modules": _MODULES, **SAVED},
        ABOUT | {"exclude_modules", "init_ia3_weights", "target_modules"},
    ),
    ("ia3_l",),
    _build,
    _write,
)
