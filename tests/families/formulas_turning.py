"""What PEFT computes, naive and dense, in NumPy: IA3, BOFT, HRA, RoAd and their like.

As `formulas`: written from ``peft/tuners/*/layer.py`` (peft 0.21.2), knowing nothing of jaxmix.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from .formulas import Factors, Leaves, New

__all__ = ["ia3"]


def ia3(f: Factors, config: Mapping[str, Any], leaves: Leaves, s: float) -> New:
    """The output is multiplied, or the input: of a convolution its channels."""
    scaling = (1 - s) + s * f["ia3_l"].reshape(-1)
    weight, fan = leaves.weight.copy(), config.get("fan_in_fan_out")
    axis = int(bool(config.get("feedforward")) != bool(fan))
    for i, number in enumerate(scaling):
        at = (i,) if axis == 0 else (slice(None), i)
        weight[at] *= number
    return weight, leaves.bias if config.get("feedforward") else leaves.bias * scaling
