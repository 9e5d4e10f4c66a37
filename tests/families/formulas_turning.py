"""PEFT's computations in naive, dense NumPy: IA3, BOFT, HRA, RoAd and similar types.

As in `formulas`: written from ``peft/tuners/*/layer.py`` (peft 0.21.2), without jaxmix.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from .formulas import Factors, Leaves, New

__all__ = ["boft", "hra", "ia3", "road", "tokens"]


def ia3(f: Factors, config: Mapping[str, Any], leaves: Leaves, s: float) -> New:
    """Multiplies the output, or the input (the channels of a convolution)."""
    scaling = (1 - s) + s * f["ia3_l"].reshape(-1)
    weight, fan = leaves.weight.copy(), config.get("fan_in_fan_out")
    axis = int(bool(config.get("feedforward")) != bool(fan))
    for i, number in enumerate(scaling):
        at = (i,) if axis == 0 else (slice(None), i)
        weight[at] *= number
    return weight, leaves.bias if config.get("feedforward") else leaves.bias * scaling


def boft(f: Factors, config: Mapping[str, Any], leaves: Leaves, s: float) -> New:
    """get_delta_weight: Cayley's blocks, each factor between a permutation and its inverse."""
    r, n = f["boft_R"], f["boft_R"].shape[1] * f["boft_R"].shape[2]
    size, rotation = r.shape[2], np.eye(n)
    for i, blocks in enumerate(r):
        factor = np.zeros((n, n))
        for k, block in enumerate(blocks):
            at, q = slice(k * size, (k + 1) * size), s * 0.5 * (block - block.T)
            factor[at, at] = (np.eye(size) - q) @ np.linalg.inv(np.eye(size) + q)
        move = np.eye(n)[_sorted_halves(n, size * 2**i, size // 2)] if i else np.eye(n)
        rotation = move @ factor @ move.T @ rotation
    flat = leaves.weight.reshape(len(leaves.weight), -1)
    scale = (1 - s) + s * f["boft_s"].reshape(-1)
    weight = (rotation @ flat.T).T * scale[:, None]
    bias = (leaves.bias - leaves.base_bias) * scale + leaves.base_bias
    return weight.reshape(leaves.weight.shape), bias


def _sorted_halves(n: int, length: int, half: int) -> list[int]:
    """block_butterfly_perm: in each run the even half-blocks, then the odd ones."""
    order = []
    for start in range(0, n, length):
        halves = [list(range(k, k + half)) for k in range(start, start + length, half)]
        order += [i for half_block in halves[::2] + halves[1::2] for i in half_block]
    return order


def hra(f: Factors, config: Mapping[str, Any], leaves: Leaves, s: float) -> New:
    """get_delta_weight: one reflection after another, or reflections from an orthogonal basis."""
    u, flat = f["hra_u"], leaves.weight.reshape(len(leaves.weight), -1)
    product, basis = np.eye(len(u)), []
    for column in u.T:
        if config.get("apply_GS"):
            for earlier in basis:
                column = column - (earlier @ column) * earlier
        unit = column / np.linalg.norm(column)
        basis.append(unit)
        product = product @ (np.eye(len(u)) - 2 * np.outer(unit, unit))
    product = (1 - s) * np.eye(len(u)) + s * product
    return (flat @ product).reshape(leaves.weight.shape), leaves.bias


def road(f: Factors, config: Mapping[str, Any], leaves: Leaves, s: float) -> New:
    """_apply_road, for every column of the weight and for the bias."""
    theta, group = s * f["road_theta"], config["group"]
    alpha, half = (1 - s) + s * f["road_alpha"], config["group"] // 2
    cos, sin, out = [], [], len(leaves.weight)
    for o in range(out):
        g, i = divmod(o, group)
        if config["variant"] == 1:
            at = [g * half + i % half] * 2
        elif config["variant"] == 2:
            at = [o, o]
        else:
            at = [2 * g * group + i, (2 * g + 1) * group + i]
        cos.append(alpha[at[0]] * np.cos(theta[at[0]]))
        sin.append(alpha[at[1]] * np.sin(theta[at[1]]))

    def rotated(x: np.ndarray) -> np.ndarray:
        y = np.empty_like(x)
        for o in range(out):
            is_first = o % group < half
            partner = -x[o + half] if is_first else x[o - half]
            y[o] = x[o] * cos[o] + partner * sin[o]
        return y

    return rotated(leaves.weight), rotated(leaves.bias)


def tokens(f: Factors, config: Mapping[str, Any], leaves: Leaves, s: float) -> New:
    """get_merged_weights: index_copy."""
    weight = leaves.weight.copy()
    for row, value in zip(f["token_indices"], f["trainable_tokens_delta"], strict=True):
        weight[row] = (1 - s) * weight[row] + s * value
    return weight, leaves.bias
