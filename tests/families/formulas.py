"""PEFT's computations: one naive, dense NumPy function per family.

Written from ``peft/tuners/*/layer.py`` (peft 0.21.2), with PEFT's names and shapes and without
jaxmix. A formula takes the factors, the config, the current weight and bias, those of the base, and
the strength. Weights have PyTorch's axis order. It returns the new weight and bias.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = [
    "Leaves",
    "adalora",
    "delta",
    "dora",
    "dora_embedding",
    "loha",
    "lokr",
    "lora",
    "lora_embedding",
    "oft",
    "rebase",
    "replace",
    "replace_then_dora",
    "shira",
]

Factors = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Leaves:
    """A site's leaves: their current values, and the base's."""

    weight: np.ndarray
    bias: np.ndarray
    base_weight: np.ndarray
    base_bias: np.ndarray


New = tuple[np.ndarray, np.ndarray]


def _scaling(config: Mapping[str, Any], rank: int) -> float:
    alpha = config["alpha"]
    return alpha / np.sqrt(rank) if config.get("rslora") else alpha / rank


def _lora_delta(f: Factors, config: Mapping[str, Any], shape: tuple[int, ...]) -> np.ndarray:
    """get_delta_weight; with fan_in_fan_out the stored weight is (in, out)."""
    a, b = f["lora_A"], f["lora_B"]
    if a.ndim > 2:
        flat = b.reshape(b.shape[0], -1) @ a.reshape(a.shape[0], -1)
        return _scaling(config, len(a)) * flat.reshape(shape)
    eye = np.eye(a.shape[1])
    outputs = (eye @ a.T) @ b.T  # lora_B(lora_A(x)) for every unit input: (in, out)
    return _scaling(config, len(a)) * (outputs if config.get("fan_in_fan_out") else outputs.T)


def lora(f: Factors, config: Mapping[str, Any], leaves: Leaves, s: float) -> New:
    weight = leaves.weight + s * _lora_delta(f, config, leaves.weight.shape)
    bias = leaves.bias
    if "lora_B.bias" in f:
        bias = bias + s * _scaling(config, len(f["lora_A"])) * f["lora_B.bias"]
    return weight, bias


def lora_embedding(f: Factors, config: Mapping[str, Any], leaves: Leaves, s: float) -> New:
    a, b = f["lora_embedding_A"], f["lora_embedding_B"]
    rows = np.stack([a.T[token] @ b.T for token in range(a.shape[1])])
    return leaves.weight + s * _scaling(config, len(a)) * rows, leaves.bias


def dora(f: Factors, config: Mapping[str, Any], leaves: Leaves, s: float) -> New:
    """The forward: ``result + (c − 1)(result − b₀) + c·lora(x)·scaling`` with result ``xWᵀ + b``.

    The norm, one per output, is that of the base's weight plus the adapter's own delta.
    """
    delta, fan = _lora_delta(f, config, leaves.weight.shape), config.get("fan_in_fan_out")
    whole = leaves.base_weight + delta
    outputs = range(whole.shape[1] if fan else whole.shape[0])
    norms = [np.sqrt(np.sum((whole[:, o] if fan else whole[o]) ** 2)) for o in outputs]
    c = f["lora_magnitude_vector"].reshape(-1) / np.array(norms)
    shaped = c[None, :] if fan else c.reshape(-1, *(1,) * (whole.ndim - 1))
    weight = leaves.weight + (shaped - 1) * leaves.weight + shaped * delta
    bias = leaves.bias + (c - 1) * (leaves.bias - leaves.base_bias)
    if "lora_B.bias" in f:  # PEFT refuses this; lora_B(lora_A(x)) would contain the bias
        bias = bias + c * _scaling(config, len(f["lora_A"])) * f["lora_B.bias"]
    return (1 - s) * leaves.weight + s * weight, (1 - s) * leaves.bias + s * bias


def dora_embedding(f: Factors, config: Mapping[str, Any], leaves: Leaves, s: float) -> New:
    a, b = f["lora_embedding_A"], f["lora_embedding_B"]
    delta = _scaling(config, len(a)) * (a.T @ b.T)
    whole = leaves.base_weight + delta
    c = f["lora_magnitude_vector"] / np.array([np.linalg.norm(column) for column in whole.T])
    weight = c[None, :] * leaves.weight + c[None, :] * delta
    return (1 - s) * leaves.weight + s * weight, leaves.bias


def adalora(f: Factors, config: Mapping[str, Any], leaves: Leaves, s: float) -> New:
    """Divides alpha by the rank before pruning, not by r."""
    scaling = config["alpha"] if config["alpha"] > 0 else float(config["init_r"])
    delta = f["lora_B"] @ (f["lora_A"] * f["lora_E"]) * scaling / (config["init_r"] + 1e-5)
    return leaves.weight + s * delta.reshape(leaves.weight.shape), leaves.bias


def _rebuilt(t: np.ndarray, b: np.ndarray, a: np.ndarray) -> np.ndarray:
    """Computes einsum("i j k l, j r, i p -> p r k l") entry by entry."""
    out = np.zeros((a.shape[1], b.shape[1], *t.shape[2:]))
    for p, r in np.ndindex(a.shape[1], b.shape[1]):
        for i, j in np.ndindex(t.shape[:2]):
            out[p, r] += t[i, j] * b[j, r] * a[i, p]
    return out


def loha(f: Factors, config: Mapping[str, Any], leaves: Leaves, s: float) -> New:
    if "hada_t1" in f:
        rank = len(f["hada_w1_a"])
        first = _rebuilt(f["hada_t1"], f["hada_w1_b"], f["hada_w1_a"])
        second = _rebuilt(f["hada_t2"], f["hada_w2_b"], f["hada_w2_a"])
    else:
        rank = len(f["hada_w1_b"])
        first, second = f["hada_w1_a"] @ f["hada_w1_b"], f["hada_w2_a"] @ f["hada_w2_b"]
    delta = (first * second * (config["alpha"] / rank)).reshape(leaves.weight.shape)
    return leaves.weight + s * delta, leaves.bias


def lokr(f: Factors, config: Mapping[str, Any], leaves: Leaves, s: float) -> New:
    """Scales by alpha/r even if both factors are full; np.kron and torch.kron pad on the left."""
    x = f["lokr_w1"] if "lokr_w1" in f else f["lokr_w1_a"] @ f["lokr_w1_b"]
    if "lokr_w2" in f:
        y = f["lokr_w2"]
    elif "lokr_t2" in f:
        y = _rebuilt(f["lokr_t2"], f["lokr_w2_b"], f["lokr_w2_a"])
    else:
        y = f["lokr_w2_a"] @ f["lokr_w2_b"]
    if y.ndim == 4:
        x = x[:, :, None, None]
    delta = np.kron(x, y) * (config["alpha"] / config["r"])
    return leaves.weight + s * delta.reshape(leaves.weight.shape), leaves.bias


def _rotations(weight: np.ndarray, config: Mapping[str, Any], s: float) -> list[np.ndarray]:
    """Computes the blocks of _project_batch and _cayley_batch; a strength scales Q."""
    blocks = []
    size = config["block"]
    for numbers in weight:
        q = np.zeros((size, size))
        rows = iter(numbers)
        for i in range(size):
            for j in range(i + 1, size):
                q[i, j] = next(rows)
        q = q - q.T
        if "eps" in config:
            limit, norm = config["eps"] / np.sqrt(len(weight)), np.sqrt((q**2).sum())
            q = q if norm <= limit else limit * q / norm
        q, eye = s * q, np.eye(size)
        if config["terms"] is None:
            blocks.append((eye - q) @ np.linalg.inv(eye + q))
            continue
        r = eye.copy()
        if config["terms"] > 1:
            r += 2 * q
            if config["terms"] > 2:
                power = q @ q
                r += 2 * power
                for _ in range(3, config["terms"] - 1):
                    power = power @ q
                    r += 2 * power
                r += power @ q
        blocks.append(r)
    return blocks


def oft(f: Factors, config: Mapping[str, Any], leaves: Leaves, s: float) -> New:
    """Rotates the input of a layer, ``x R``, or the output of an embedding."""
    embedding = "oft_embedding_R" in f
    blocks = _rotations(f["oft_embedding_R" if embedding else "oft_R"], config, s)
    size, flat = config["block"], leaves.weight.reshape(len(leaves.weight), -1).copy()
    for i in range(flat.shape[1] // size):
        at = slice(i * size, (i + 1) * size)
        r = blocks[i if len(blocks) > 1 else 0]
        flat[:, at] = flat[:, at] @ (r if embedding else r.T)
    return flat.reshape(leaves.weight.shape), leaves.bias


def shira(f: Factors, config: Mapping[str, Any], leaves: Leaves, s: float) -> New:
    """Adds a sparse tensor in coordinates; duplicate entries add up."""
    weight = leaves.weight.copy()
    for (i, j), value in zip(f["shira_indices"].T, f["shira_weight"], strict=True):
        weight[i, j] += s * value
    return weight, leaves.bias


def delta(f: Factors, config: Mapping[str, Any], leaves: Leaves, s: float) -> New:
    """Adds LyCORIS's diff and diff_b unchanged, entry by entry."""
    return leaves.weight + s * f.get("weight", 0.0), leaves.bias + s * f.get("bias", 0.0)


def replace(f: Factors, config: Mapping[str, Any], leaves: Leaves, s: float) -> New:
    """modules_to_save and trained biases."""
    weight, bias = f.get("weight", leaves.weight), f.get("bias", leaves.bias)
    return (1 - s) * leaves.weight + s * weight, (1 - s) * leaves.bias + s * bias


def rebase(f: Factors, config: Mapping[str, Any], leaves: Leaves, s: float) -> New:
    """Replaces the base below the current leaves by the file's own."""
    return leaves.weight + s * (f["base_weight"] - leaves.base_weight), leaves.bias


def replace_then_dora(f: Factors, config: Mapping[str, Any], leaves: Leaves, s: float) -> New:
    """A trained bias is part of the base, so DoRA's b₀ is that bias at its strength."""
    _, bias = replace({"bias": f["bias"]}, config, leaves, s)
    _, base_bias = replace(
        {"bias": f["bias"]},
        config,
        Leaves(leaves.weight, leaves.base_bias, leaves.base_weight, leaves.base_bias),
        s,
    )
    with_bias = Leaves(leaves.weight, bias, leaves.base_weight, base_bias)
    return dora(f, config, with_bias, s)
