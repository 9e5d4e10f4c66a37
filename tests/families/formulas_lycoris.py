"""LyCORIS's computations in naive, dense NumPy: its norm over any update, and its rotation.

Written from ``lycoris/functional/general.py`` and ``diag_oft.py`` (lycoris-lora 4.1.3), and from
``peft/tuners/oft/layer.py`` (peft 0.13.2 and 0.15.2), without jaxmix.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from .formulas import Factors, Leaves, New, loha, lokr, lora

__all__ = ["diag_oft", "normed"]

_ADDED = {"lora": lora, "loha": loha, "lokr": lokr}


def normed(f: Factors, config: Mapping[str, Any], leaves: Leaves, s: float) -> New:
    """apply_weight_decompose: the norm of the base's weight plus the update's difference."""
    base = Leaves(leaves.base_weight, leaves.bias, leaves.base_weight, leaves.base_bias)
    adapted = _ADDED[config["over"]](f, config, base, 1.0)[0]
    delta = adapted - leaves.base_weight
    if config["axis"] == "out":
        norm = np.sqrt((adapted.reshape(len(adapted), -1) ** 2).sum(1)) + config["eps"]
        c = (f["dora_scale"] / norm).reshape(-1, *[1] * (adapted.ndim - 1))
    else:
        by_channel = adapted.swapaxes(0, 1)
        norm = np.sqrt((by_channel.reshape(len(by_channel), -1) ** 2).sum(1)) + config["eps"]
        c = (f["dora_scale"] / norm).reshape(1, -1, *[1] * (adapted.ndim - 2))
    return (1 - s) * leaves.weight + s * c * (leaves.weight + delta), leaves.bias


def diag_oft(f: Factors, config: Mapping[str, Any], leaves: Leaves, s: float) -> New:
    """make_weight, and get_delta_weight of the two old PEFTs, with the generator scaled by s."""
    flat = leaves.weight.reshape(len(leaves.weight), -1)
    if "oft_blocks" in f:
        flat = _rotated(f["oft_blocks"], config, flat, s)
    if "rescale" in f:
        flat = ((1 - s) + s * f["rescale"])[:, None] * flat
    return flat.reshape(leaves.weight.shape), leaves.bias


def _rotated(d: np.ndarray, config: Mapping[str, Any], flat: np.ndarray, s: float) -> np.ndarray:
    """Rotates a matrix's outputs or inputs."""
    (count, b, _), bound, written_by = d.shape, config.get("bound"), config["written_by"]
    if written_by == "lycoris":
        q = d - d.swapaxes(1, 2)
        if bound is not None and np.sqrt((q**2).sum()) > bound:
            q = q * bound / np.sqrt((q**2).sum())
        q, inverse = s * q, True
    else:
        if bound is not None:
            norms = np.sqrt((d**2).sum((1, 2), keepdims=True))
            d = np.where(norms > bound, d * bound / norms, d)
        q, inverse = s * 0.5 * (d - d.swapaxes(1, 2)), False
    eye = np.eye(b)
    size = len(flat) if written_by != "peft 0.15" else flat.shape[1]
    rotation = np.zeros((-(-size // b) * b,) * 2)
    for k in range(len(rotation) // b):
        block, at = q[k if count > 1 else 0], slice(k * b, (k + 1) * b)
        plus, minus = eye + block, eye - block
        # LyCORIS has (I + Q)(I − Q)⁻¹, PEFT (I − S)(I + S)⁻¹.
        rotation[at, at] = plus @ np.linalg.inv(minus) if inverse else minus @ np.linalg.inv(plus)
    rotation = rotation[:size, :size]
    return flat @ rotation.T if written_by == "peft 0.15" else rotation.T @ flat
