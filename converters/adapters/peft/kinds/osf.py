"""PEFT's OSF, which trains the small singular values of the base and their vectors."""

from typing import Any

import numpy as np

from jaxmix.converters.adapters.common.shapes import (
    SiteTensors,
    at_least_float32,
    describe_shapes,
    required,
)
from jaxmix.converters.adapters.peft.file import File
from jaxmix.converters.adapters.peft.peft_type import ABOUT, SAVED, ConfigFields, PeftType
from jaxmix.errors import ShapeError
from jaxmix.families import LoRA, Update

__all__ = ["PEFT_TYPE"]

_NAMES = ("osf_svd_params.U_low", "osf_svd_params.S_low", "osf_svd_params.V_low")


def _build(file: File, site: str, factors: SiteTensors) -> Update:
    """``W' = W + U S V − U₀ S₀ V₀``, a LoRA, where U₀ S₀ V₀ is the part in the base.

    The tensors state how many singular values were trained. Those of the base come from an SVD in
    float32, as in PEFT when it loads; its signs are irrelevant, since only the product is
    subtracted. The two nearly cancel, so both stay in float32 even if the file has 16 bits.
    """
    u, s, v = required(factors, *_NAMES)
    count = s.size
    if s.ndim != 1 or u.ndim != 2 or v.ndim != 2 or u.shape[1] != count or len(v) != count:
        raise ShapeError(f"{describe_shapes(factors)}, expected (out, k), (k,) and (k, in)")
    weight = np.asarray(file.weight(site), np.float32)
    if weight.shape != (u.shape[0], v.shape[1]) or count > min(weight.shape):
        raise ShapeError(
            f"the base's weight at {site} has shape {weight.shape}, expected "
            f"{(u.shape[0], v.shape[1])} by U_low and V_low"
        )
    high = min(weight.shape) - count
    u0, s0, v0 = np.linalg.svd(weight, full_matrices=False)
    u, s, v = at_least_float32(u), at_least_float32(s), at_least_float32(v)
    b: Any = np.concatenate([u * s, (-u0[:, high:] * s0[high:]).astype(u.dtype)], 1)
    a: Any = np.concatenate([v, v0[high:].astype(v.dtype)], 0)
    return LoRA(a, b, 1.0)


# `effective_rank` and `rank_pattern` follow from the tensors.
PEFT_TYPE = PeftType(
    ConfigFields(
        dict(SAVED),
        ABOUT
        | {"effective_rank", "init_weights", "rank_pattern", "target_modules", "target_svd_config"},
    ),
    _NAMES,
    _build,
)
