"""PEFT's OSF: the small singular values of the base and their vectors, trained."""

from typing import Any

import numpy as np

from jaxmix.converters.adapters.peft.file import File
from jaxmix.converters.adapters.peft.kind import ABOUT, SAVED, Fields, Kind
from jaxmix.converters.adapters.peft.shapes import Factors, need, shapes, wide
from jaxmix.errors import ShapeError
from jaxmix.families import LoRA, Update

__all__ = ["KIND"]

_NAMES = ("osf_svd_params.U_low", "osf_svd_params.S_low", "osf_svd_params.V_low")


def _build(file: File, site: str, factors: Factors) -> Update:
    """``W' = W + U S V − U₀ S₀ V₀``, with U₀ S₀ V₀ what the base has there: of low rank, a LoRA.

    How many singular values were trained the tensors say. The base's own come out of an SVD in
    float32, as PEFT's do at load; its signs do not matter, since only the product is taken off. The
    two nearly cancel, so that in a file of 16 bits both stay in float32.
    """
    u, s, v = need(factors, *_NAMES)
    count = s.size
    if s.ndim != 1 or u.ndim != 2 or v.ndim != 2 or u.shape[1] != count or len(v) != count:
        raise ShapeError(f"{shapes(factors)}, expected (out, k), (k,) and (k, in)")
    weight = np.asarray(file.weight(site), np.float32)
    if weight.shape != (u.shape[0], v.shape[1]) or count > min(weight.shape):
        raise ShapeError(
            f"the base's weight at {site} has shape {weight.shape}, expected "
            f"{(u.shape[0], v.shape[1])} by U_low and V_low"
        )
    high = min(weight.shape) - count
    u0, s0, v0 = np.linalg.svd(weight, full_matrices=False)
    u, s, v = wide(u), wide(s), wide(v)
    b: Any = np.concatenate([u * s, (-u0[:, high:] * s0[high:]).astype(u.dtype)], 1)
    a: Any = np.concatenate([v, v0[high:].astype(v.dtype)], 0)
    return LoRA(a, b, 1.0)


# `effective_rank` and `rank_pattern` are the tensors' too.
KIND = Kind(
    Fields(
        dict(SAVED),
        ABOUT
        | {"effective_rank", "init_weights", "rank_pattern", "target_modules", "target_svd_config"},
    ),
    _NAMES,
    _build,
)
