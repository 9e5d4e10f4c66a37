"""PEFT's computations in naive, dense NumPy: the types that add a Δ.

As in `formulas`: written from ``peft/tuners/*/layer.py`` (peft 0.21.2), without jaxmix.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from .formulas import Factors, Leaves, New

__all__ = [
    "adamss",
    "c3a",
    "delora",
    "fourierft",
    "gralora",
    "kasa",
    "pvera",
    "randlora",
    "supertuning",
    "tinylora",
    "unilora",
    "vblora",
    "vera",
    "waveft",
]


def _added(delta: np.ndarray, config: Mapping[str, Any], leaves: Leaves, s: float) -> New:
    """``W + s·Δ`` for a weight that may be stored as (in, out)."""
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
    outputs = f["pvera_lambda_d"] * (np.eye(n) @ f["pvera_A"][:, :n].T)
    mean, _ = np.split(outputs, 2, axis=1)
    delta = (f["pvera_lambda_b"] * (mean @ f["pvera_B"][:out].T)).T
    return _added(delta, config, leaves, s)


def randlora(f: Factors, config: Mapping[str, Any], leaves: Leaves, s: float) -> New:
    out, n = _sizes(config, leaves)
    small, large = min(out, n), max(out, n)
    a = f["randlora_A"][:, :, :small]
    scaled = np.stack(
        [f["randlora_lambda"][k][:, None] * a[k] * f["randlora_gamma"] for k in range(len(a))]
    )
    scaled_a = scaled.reshape(-1, small)
    bases = f["randlora_lambda"].shape[1]
    flat_b = f["randlora_B"][:large, :bases].reshape(large, -1)
    # In PEFT's names: update_B and update_A, multiplied one after the other.
    update_b, update_a = (scaled_a, flat_b) if small == n else (flat_b.T, scaled_a.T)
    outputs = (np.eye(n) @ update_b.T) @ update_a.T
    return _added(config["alpha"] / len(a) * outputs.T, config, leaves, s)


def delora(f: Factors, config: Mapping[str, Any], leaves: Leaves, s: float) -> New:
    a, b = f["delora_A"], f["delora_B"]
    lengths = np.array(
        [
            max(np.linalg.norm(a[i]), 1e-4) * max(np.linalg.norm(b[:, i]), 1e-4)
            for i in range(len(a))
        ]
    )
    inner = (np.eye(a.shape[1]) * f["delora_w_norm"]) @ a.T
    outputs = (inner * (f["delora_lambda"] / len(a) / lengths)) @ b.T
    return _added(outputs.T, config, leaves, s)


def _mixed(f: Factors, name: str, topk: int) -> np.ndarray:
    """The chunks of one of VB-LoRA's factors."""
    bank = f["vblora_vector_bank"]
    if f"vblora_logits_{name}" in f:
        logits = f[f"vblora_logits_{name}"]
        out = np.zeros((*logits.shape[:2], bank.shape[1]))
        for at in np.ndindex(*logits.shape[:2]):
            places = np.argsort(-logits[at])[:topk]
            weights = np.exp(logits[at][places])
            out[at] = (weights / weights.sum()) @ bank[places]
        return out
    weights, places = (f[f"vblora_logits_{name}_topk_{end}"] for end in ("weights", "indices"))
    whole = np.concatenate([weights, 1 - weights.sum(-1, keepdims=True)], -1)
    return np.einsum("abk,abkl->abl", whole, bank[places])


def vblora(f: Factors, config: Mapping[str, Any], leaves: Leaves, s: float) -> New:
    a, b = _mixed(f, "A", config["topk"]), _mixed(f, "B", config["topk"])
    rows = a.reshape(len(a), -1)
    columns = np.stack([b[:, i].reshape(-1) for i in range(b.shape[1])], 1)
    return _added(columns @ rows, config, leaves, s)


def unilora(f: Factors, config: Mapping[str, Any], leaves: Leaves, s: float) -> New:
    a, b = (
        f["unilora_theta_d"][f[f"unilora_indices_{side}"]] * f[f"unilora_scales_{side}"]
        for side in "AB"
    )
    return _added(b @ a, config, leaves, s)


def tinylora(f: Factors, config: Mapping[str, Any], leaves: Leaves, s: float) -> New:
    middle = sum(v * p for v, p in zip(f["tinylora_v"], f["tinylora_P"], strict=True))
    return _added(f["tinylora_B"] @ middle @ f["tinylora_A"], config, leaves, s)


def supertuning(f: Factors, config: Mapping[str, Any], leaves: Leaves, s: float) -> New:
    delta = np.zeros(leaves.weight.size)
    np.add.at(delta, f["supertuning_indices"], f["supertuning_values"])
    delta = delta.reshape(leaves.weight.shape)
    if "supertuning_lora_A" in f:
        a, b = f["supertuning_lora_A"], f["supertuning_lora_B"]
        delta = delta + config["alpha"] / len(a) * b @ a
    return _added(delta, config, leaves, s)


def c3a(f: Factors, config: Mapping[str, Any], leaves: Leaves, s: float) -> New:
    """Applies PEFT's transforms to the unit inputs."""
    kernels, n = f["c3a_kernel"], leaves.weight.shape[1]
    inputs = np.eye(n).reshape(n, kernels.shape[1], kernels.shape[2])
    waves = np.einsum("xnb,mnb->xmb", np.fft.ifft(inputs), np.fft.fft(kernels))
    outputs = np.fft.fft(waves).real.reshape(n, -1) / n
    return _added(outputs.T, config, leaves, s)


def fourierft(f: Factors, config: Mapping[str, Any], leaves: Leaves, s: float) -> New:
    dense = np.zeros(_sizes(config, leaves))
    dense[tuple(f["indices"])] = f["fourierft_spectrum"]
    return _added(config["scaling"] * np.fft.ifft2(dense).real, config, leaves, s)


def waveft(f: Factors, config: Mapping[str, Any], leaves: Leaves, s: float) -> New:
    """Sums coefficient by coefficient; the filters are given."""
    out, n = _sizes(config, leaves)
    indices, numbers, low = f["waveft_indices"], f["waveft_spectrum"], config.get("filter")
    delta = np.zeros((out, n))
    if low is None:
        delta[tuple(indices)] = numbers
        return _added(config["scaling"] * delta, config, leaves, s)
    length = len(low)
    high = [(-1) ** t * low[length - 1 - t] for t in range(length)]
    padded = [size + length - 2 + (size + length - 2) % 2 for size in (out, n)]
    padded_delta = np.zeros([size + length - 2 for size in padded])
    for number, *position in zip(numbers, *indices, strict=True):
        at = [
            p + (padded_size - size) // 2
            for p, padded_size, size in zip(position, padded, (out, n), strict=True)
        ]
        (is_low, y), (is_left, x) = (
            (p < padded_size // 2, p % (padded_size // 2))
            for p, padded_size in zip(at, padded, strict=True)
        )
        # cH, the upper right quarter, has high frequencies along rows and low ones along columns.
        filters = {
            (1, 1): (low, low),
            (1, 0): (high, low),
            (0, 1): (low, high),
            (0, 0): (high, high),
        }
        first, second = filters[int(is_low), int(is_left)]
        padded_delta[2 * y : 2 * y + length, 2 * x : 2 * x + length] += number * np.outer(
            first, second
        )
    overhang = length - 2
    padded_delta = padded_delta[
        overhang : padded_delta.shape[0] - overhang, overhang : padded_delta.shape[1] - overhang
    ]
    top, left = (padded_delta.shape[0] - out) // 2, (padded_delta.shape[1] - n) // 2
    return _added(
        config["scaling"] * padded_delta[top : top + out, left : left + n], config, leaves, s
    )


def gralora(f: Factors, config: Mapping[str, Any], leaves: Leaves, s: float) -> New:
    a, b = f["gralora_A"], f["gralora_B"]
    k, inputs, rank = a.shape
    rank_per_block, outputs = rank // k, b.shape[2]
    delta = np.zeros((k * outputs, k * inputs))
    for m in range(k):
        for n in range(k):
            inner = a[n][:, m * rank_per_block : (m + 1) * rank_per_block]
            tile = inner @ b[m][n * rank_per_block : (n + 1) * rank_per_block]
            delta[m * outputs : (m + 1) * outputs, n * inputs : (n + 1) * inputs] = tile.T
    hybrid = 0
    if "gralora_A_general" in f:
        hybrid = len(f["gralora_A_general"])
        delta = delta + f["gralora_B_general"] @ f["gralora_A_general"]
    return _added(config["alpha"] / (rank + hybrid) * delta, config, leaves, s)


def adamss(f: Factors, config: Mapping[str, Any], leaves: Leaves, s: float) -> New:
    """Computes each group of rows; the bias is an additional column."""
    groups = len([name for name in f if name.startswith("adamss_A")])
    chunks = [f[f"adamss_B.{i}"] @ f[f"adamss_A.{i}"] @ f["adamss_newB"] for i in range(groups)]
    delta = np.zeros((len(leaves.weight), f["adamss_newB"].shape[1]))
    delta[f["rows"]] = np.concatenate(chunks)
    n = leaves.weight.shape[1]
    bias = delta[:, n] if delta.shape[1] > n else 0
    return leaves.weight + s * delta[:, :n], leaves.bias + s * bias


def kasa(f: Factors, config: Mapping[str, Any], leaves: Leaves, s: float) -> New:
    rank = len(f["lora_diag"])
    u, values, v = np.linalg.svd(leaves.base_weight, full_matrices=False)
    values[: len(values) - rank] = 0
    removed = (u * values) @ v
    added = config["alpha"] / rank * (f["lora_B"] * f["lora_diag"]) @ f["lora_A"]
    return leaves.weight + s * (added - removed), leaves.bias
