"""PEFT's SHiRA."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxmix.converters.adapters.common.shapes import SiteTensors, describe_shapes, required
from jaxmix.converters.adapters.common.values import COUNT, Check
from jaxmix.converters.adapters.peft.file import File
from jaxmix.converters.adapters.peft.peft_type import (
    ABOUT,
    SAVED,
    WHERE,
    ConfigFields,
    PeftContent,
    PeftType,
)
from jaxmix.converters.adapters.peft.same import equal_value, refuse_unless
from jaxmix.errors import CheckpointError, ShapeError
from jaxmix.families import SHiRA, Update

__all__ = ["PEFT_TYPE"]


def _build(file: File, site: str, factors: SiteTensors) -> Update:
    """SHiRA; values and their positions, which PEFT saves as floats on Windows."""
    values, indices = required(factors, "shira_weight", "shira_indices")
    if values.ndim != 1 or indices.shape != (2, values.size):
        raise ShapeError(f"{describe_shapes(factors)}, expected (N,) and (2, N)")
    wide = indices.astype(np.float64)
    if (wide != np.floor(wide)).any() or (wide < 0).any() or (wide >= 2**31).any():
        raise CheckpointError("shira_indices are not all non-negative integers. Save it again")
    return SHiRA(values, wide.astype(np.int32), file.config.values.get("r"))


def _write(updates: Mapping[str, Any]) -> PeftContent:
    """Writes the rank r, for which PEFT allocates r·(in + out) entries."""
    problem = "PEFT writes r·(in + out) entries at a site, and the rank r of these is unknown"
    refuse_unless(updates, lambda update: update.rank is not None, problem)
    tensors = {}
    for site, update in updates.items():
        tensors[f"{site}.shira_weight"] = update.values
        tensors[f"{site}.shira_indices"] = update.indices
    fields = {"r": equal_value(updates, "r", lambda update: update.rank), "mask_type": "random"}
    return PeftContent(fields, tensors)


_RANK = Check(COUNT.description, COUNT.holds, False)
# The positions are in the file, so the fields that drew them (mask_type, random_seed) are harmless.
PEFT_TYPE = PeftType(
    ConfigFields(
        {"r": _RANK, **SAVED},
        ABOUT | WHERE | frozenset("fan_in_fan_out init_weights mask_type random_seed".split()),
    ),
    ("shira_weight", "shira_indices"),
    _build,
    _write,
    integers=("shira_indices",),
)
