"""PEFT's UniLoRA."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxmix.converters.adapters.common.shapes import SiteTensors, describe_shapes, required
from jaxmix.converters.adapters.common.values import COUNT, FLAG, one_of
from jaxmix.converters.adapters.peft.arrays import same_array
from jaxmix.converters.adapters.peft.file import File
from jaxmix.converters.adapters.peft.kinds.unilora_dealt import DEALING, THETA, dealt, vector
from jaxmix.converters.adapters.peft.peft_type import (
    ABOUT,
    SAVED,
    ConfigFields,
    PeftContent,
    PeftType,
)
from jaxmix.converters.adapters.peft.same import equal_value, fan_in_fan_out
from jaxmix.errors import CheckpointError, ShapeError
from jaxmix.families import UniLoRA

__all__ = ["PEFT_TYPE"]

# PEFT's names of the parameters, and the update's fields.
_TENSORS = {
    "unilora_indices_A": "a_indices",
    "unilora_indices_B": "b_indices",
    "unilora_scales_A": "a_scales",
    "unilora_scales_B": "b_scales",
}


def _build(file: File, site: str, factors: SiteTensors) -> UniLoRA:
    """UniLoRA at a site."""
    theta, config = vector(file), file.config.values
    a, b, a_scales, b_scales = required(factors, *_TENSORS)
    is_site = a.ndim == b.ndim == 2 and (a.shape[0], b.shape[1]) == (config["r"],) * 2
    if not is_site or (a.shape, b.shape) != (a_scales.shape, b_scales.shape):
        raise ShapeError(
            f"{describe_shapes(factors)}, expected A's ({config['r']}, in), B's (out, "
            f"{config['r']})"
        )
    if not all(0 <= x.min() <= x.max() < theta.size for x in (a, b) if x.size):
        raise CheckpointError(f"the indices are not all below {theta.size}, the size of {THETA}")
    indices = a.astype(np.int32), b.astype(np.int32)
    return UniLoRA(theta, *indices, a_scales, b_scales, file.transposed)


def _write(updates: Mapping[str, Any]) -> PeftContent:
    """Writes the indices too, in 64 bits as PEFT does."""
    theta = same_array(updates, THETA, lambda update: update.theta)
    tensors: dict[str, Any] = {}
    for site, update in updates.items():
        for name, field in _TENSORS.items():
            array = getattr(update, field)
            is_index = "indices" in name
            tensors[f"{site}.{name}"] = np.asarray(array, np.int64) if is_index else array
    fields = {
        "fan_in_fan_out": fan_in_fan_out(updates),
        "r": equal_value(updates, "r", lambda update: update.a_indices.shape[0]),
        "save_indices": True,
        "theta_d_length": theta.shape[0],
    }
    return PeftContent(fields, tensors, {THETA: theta})


PEFT_TYPE = PeftType(
    ConfigFields(
        {
            "bias": one_of("none", "all", "unilora_only"),
            "fan_in_fan_out": FLAG,
            "r": COUNT,
            "save_indices": FLAG,
            "theta_d_length": COUNT,
            **DEALING,
            **SAVED,
        },
        ABOUT | {"init_theta_d_bound", "init_weights", "unilora_dropout"},
    ),
    tuple(_TENSORS),
    _build,
    _write,
    shared=(THETA,),
    integers=("unilora_indices_A", "unilora_indices_B"),
    derive_tensors=dealt,
)
