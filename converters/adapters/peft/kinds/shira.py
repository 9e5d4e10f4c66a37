"""PEFT's SHiRA."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxmix.converters.adapters.peft.file import File
from jaxmix.converters.adapters.peft.kind import ABOUT, SAVED, WHERE, Fields, Kind, Written
from jaxmix.converters.adapters.peft.same import same, unless
from jaxmix.converters.adapters.peft.shapes import Factors, need, shapes
from jaxmix.converters.adapters.peft.values import COUNT, Check
from jaxmix.errors import CheckpointError, ShapeError
from jaxmix.families import SHiRA, Update

__all__ = ["KIND"]


def _build(file: File, site: str, factors: Factors) -> Update:
    """SHiRA: values and where they go. PEFT on Windows saves the positions as floats."""
    values, indices = need(factors, "shira_weight", "shira_indices")
    if values.ndim != 1 or indices.shape != (2, values.size):
        raise ShapeError(f"{shapes(factors)}, expected (N,) and (2, N)")
    wide = indices.astype(np.float64)
    if (wide != np.floor(wide)).any() or (wide < 0).any() or (wide >= 2**31).any():
        raise CheckpointError("shira_indices are not all whole numbers from 0 on. Save it again")
    return SHiRA(values, wide.astype(np.int32), file.config.values.get("r"))


def _write(updates: Mapping[str, Any]) -> Written:
    """The rank says how many entries PEFT makes room for: r·(in + out)."""
    said = "PEFT writes r·(in + out) entries at a site, and of these updates no rank r is known"
    unless(updates, lambda update: update.rank is not None, said)
    tensors = {}
    for site, update in updates.items():
        tensors[f"{site}.shira_weight"] = update.values
        tensors[f"{site}.shira_indices"] = update.indices
    fields = {"r": same(updates, "r", lambda update: update.rank), "mask_type": "random"}
    return Written(fields, tensors)


_RANK = Check(COUNT.text, COUNT.holds, False)
# The positions are in the file, so what drew them (mask_type, random_seed, r) is history.
KIND = Kind(
    Fields(
        {"r": _RANK, **SAVED},
        ABOUT | WHERE | frozenset("fan_in_fan_out init_weights mask_type random_seed".split()),
    ),
    ("shira_weight", "shira_indices"),
    _build,
    _write,
    integers=("shira_indices",),
)
