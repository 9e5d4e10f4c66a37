"""PEFT's computations in naive, dense NumPy: the families that read the base's weight.

As in `formulas`: written from ``peft/tuners/*/layer.py`` (peft 0.21.2), without jaxmix.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from .formulas import Factors, Leaves, New

__all__ = ["deft", "frod", "glora", "hira", "miss", "miss_bat", "peanut", "psoft"]


def miss(f: Factors, config: Mapping[str, Any], leaves: Leaves, s: float) -> New:
    """The forward sums the input in runs of r, padded at the end; *mini* repeats over outputs."""
    block, weight = f["miss_block"], leaves.weight.copy()
    for o, i in np.ndindex(weight.shape):
        weight[o, i] += s * block[i % block.shape[0], o % block.shape[1]]
    return weight, leaves.bias


def miss_bat(f: Factors, config: Mapping[str, Any], leaves: Leaves, s: float) -> New:
    """get_delta_weight: each (r, r) block of the base's weight times its rows' block, plus it."""
    block, weight = f["miss_block"], leaves.weight.copy()
    r = block.shape[1]
    for k in range(len(block)):
        for c in range(weight.shape[1] // r):
            at = slice(k * r, (k + 1) * r), slice(c * r, (c + 1) * r)
            weight[at] += s * (leaves.base_weight[at] @ block[k] + block[k])
    return weight, leaves.bias


def hira(f: Factors, config: Mapping[str, Any], leaves: Leaves, s: float) -> New:
    """Multiplies the base's weight by BA, entry by entry."""
    a, b = f["hira_A"], f["hira_B"]
    product = b.reshape(len(b), -1) @ a.reshape(len(a), -1)
    if config.get("fan_in_fan_out"):
        product = product.T
    if config.get("embedding"):
        product = (f["hira_B"] @ f["hira_A"]).T
    product = product.reshape(leaves.weight.shape)
    return leaves.weight + s * leaves.base_weight * product, leaves.bias


def glora(f: Factors, config: Mapping[str, Any], leaves: Leaves, s: float) -> New:
    """weight_eff and bias_eff; a path is a product, a vector, a number or absent."""

    def path(name: str) -> Any:
        if f"glora_{name}.Xd" in f:
            return f[f"glora_{name}.Xd"] @ f[f"glora_{name}.Xu"]
        number = f.get(f"glora_{name}.X", np.zeros(1))
        return number[0] if number.shape == (1,) else number

    moved = leaves.base_bias * path("D") + path("E")
    if config.get("on_input"):  # LyCORIS
        flat = leaves.weight.reshape(len(leaves.weight), len(path("A")), -1)
        scaled = np.einsum("ock,cd->odk", flat, path("A"))
    else:
        scaled = leaves.base_weight * path("A")
    weight = leaves.weight + s * (scaled.reshape(leaves.weight.shape) + path("B"))
    if np.ndim(path("C")):
        moved = moved + (leaves.base_weight @ path("C"))[:, 0]
    return weight, leaves.bias + s * moved


def psoft(f: Factors, config: Mapping[str, Any], leaves: Leaves, s: float) -> New:
    """The forward: ``scaling · (x Aᵀ Rᵀ − x Aᵀ) Bᵀ``, with R as OrthLayer.get_matrix makes it."""
    rank, numbers = len(f["A"]), f["psoft_R.weight"]
    eye, r = np.eye(rank), numbers
    if numbers.ndim == 1:
        q = np.zeros((rank, rank))
        q[np.triu_indices(rank, 1)] = numbers
        q = q - q.T
        norm = np.sqrt((q**2).sum())
        if "eps" in config and norm > config["eps"]:
            q = q * (config["eps"] / norm)
        if config["terms"] is None:
            r = (eye + q) @ np.linalg.inv(eye - q)
        else:
            last = max(config["terms"], 4) if config["terms"] > 2 else 3
            powers = [np.linalg.matrix_power(q, i) for i in range(1, last)]
            weights = [2.0] * (len(powers) - 1) + [1.0]
            if config["terms"] == 2:  # I + 2Q: only the first of the two powers below
                weights = [2.0, 0.0]
            r = eye + sum(w * power for w, power in zip(weights, powers, strict=True))
    if "psoft_R.vector_b" in f:
        r = f["psoft_R.vector_b"][:, None] * r
    if "psoft_R.vector_a" in f:
        r = r * f["psoft_R.vector_a"][None]
    delta = config["scale"] * f["B"] @ (r - eye) @ f["A"]
    return leaves.weight + s * delta, leaves.bias


def deft(f: Factors, config: Mapping[str, Any], leaves: Leaves, s: float) -> New:
    """The forward: the layer's output without its bias loses a subspace, and N is injected."""
    p = q = f["deft_P"]
    k = np.maximum(p, 0)
    if config["method"] == "qr":
        q = k = np.linalg.qr(p)[0]
    fan = config.get("fan_in_fan_out")
    weight = leaves.weight.T if fan else leaves.weight
    added = q @ f["deft_R"] * config["scale"] if "deft_R" in f else 0.0
    weight = weight - s * q @ (k.T @ weight) + s * added
    moved = leaves.bias - leaves.base_bias
    return weight.T if fan else weight, leaves.bias - s * q @ (k.T @ moved)


def peanut(f: Factors, config: Mapping[str, Any], leaves: Leaves, s: float) -> New:
    """_compute_delta_weight, column by column of the base's weight."""
    act = {"relu": lambda x: np.maximum(x, 0), "tanh": np.tanh}[config["act_fn"]]
    depth = config["depth"]
    columns = []
    for column in leaves.base_weight.T:
        h, levels = act(f["peanut_A"] @ column), []
        for i in range(depth):
            levels.append(h)
            h = act(f[f"encoder{i}"] @ h)
        for i in range(depth):
            h = act(f[f"decoder{i}"] @ h) + levels[depth - 1 - i]
        columns.append(f["peanut_B"] @ h)
    return leaves.weight + s * config["scaling"] * np.array(columns).T, leaves.bias


def frod(f: Factors, config: Mapping[str, Any], leaves: Leaves, s: float) -> New:
    """The weight is composed again from its SVD: ``U (S + L) Vᵀ``."""
    fan, v = config.get("fan_in_fan_out"), f["frod_V"]
    base = leaves.base_weight.T if fan else leaves.base_weight
    columns = np.linalg.solve(v, base.T).T
    u = columns / np.linalg.norm(columns, axis=0)
    inner = np.diag(f["frod_lambda_l"])
    for (i, j), value in zip(f["frod_s_indices"].T, f["frod_lambda_s_values"], strict=True):
        inner[i, j] += value
    delta = u @ inner @ v.T - base
    return leaves.weight + s * (delta.T if fan else delta), leaves.bias
