"""What PEFT computes, naive and dense, in NumPy: the types that add a Δ of their own making.

As `formulas`: written from ``peft/tuners/*/layer.py`` (peft 0.21.2), knowing nothing of jaxmix.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from .formulas import Factors, Leaves, New

__all__ = ["pvera", "vera"]


def _added(delta: np.ndarray, config: Mapping[str, Any], leaves: Leaves, s: float) -> New:
    """``W + s·Δ``, of a weight that may be stored as (in, out)."""
    return leaves.weight + s * (delta.T if config.get("fan_in_fan_out") else delta), leaves.bias


def _sizes(config: Mapping[str, Any], leaves: Leaves) -> tuple[int, int]:
    """(out, in)."""
    first, second = leaves.weight.shape
    return (second, first) if config.get("fan_in_fan_out") else (first, second)


def vera(f: Factors, config: Mapping[str, Any], leaves: Leaves, s: float) -> New:
    out, n = _sizes(config, leaves)
    inputs = np.eye(n)
    inner = f["vera_lambda_d"] * (inputs @ f["vera_A"][:, :n].T)
    delta = (f["vera_lambda_b"] * (inner @ f["vera_B"][:out].T)).T
    return _added(delta, config, leaves, s)


def pvera(f: Factors, config: Mapping[str, Any], leaves: Leaves, s: float) -> New:
    out, n = _sizes(config, leaves)
    both = f["pvera_lambda_d"] * (np.eye(n) @ f["pvera_A"][:, :n].T)
    mean, _ = np.split(both, 2, axis=1)
    delta = (f["pvera_lambda_b"] * (mean @ f["pvera_B"][:out].T)).T
    return _added(delta, config, leaves, s)
