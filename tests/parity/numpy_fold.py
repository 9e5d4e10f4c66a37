"""An independent reference in NumPy: folds PEFT folders into weights directly by the formulas.

It uses neither jaxmix nor torch, computes densely, and is itself checked against PEFT's forward.
Weights have PyTorch's shapes; LoRA's A is (r, in), B is (out, r).
"""

import json
import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

__all__ = ["fold", "rotation"]

Params = dict[str, np.ndarray]
_KEYS = re.compile(
    r"^base_model\.model\.(?P<site>.+?)\."
    r"(?P<key>lora_\w+|hada_\w+|lokr_\w+|oft_\w+|shira_\w+)(?P<tail>\.weight|\.bias)?$"
)


def _per_module(config: Mapping, pattern: str, default: str, site: str) -> float:
    for key, value in (config.get(pattern) or {}).items():
        if re.match(rf"(.*\.)?({key})$", site):
            return value
    return config[default]


def _tucker(core: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.einsum("ijkl,jr,ip->prkl", core, b, a)


def _scale(config: Mapping, site: str) -> float:
    kind = config["peft_type"]
    if kind == "ADALORA":
        rank = config["init_r"]
        return (config["lora_alpha"] if config["lora_alpha"] > 0 else rank) / (rank + 1e-5)
    rank = _per_module(config, "rank_pattern", "r", site)
    alpha = _per_module(config, "alpha_pattern", "lora_alpha" if kind == "LORA" else "alpha", site)
    return alpha / (np.sqrt(rank) if config.get("use_rslora") else rank)


def _lora(tensors: Params, config: Mapping, site: str, shape: tuple[int, ...]) -> np.ndarray:
    scale = _scale(config, site)
    if "lora_embedding_A" in tensors:
        return scale * (tensors["lora_embedding_B"] @ tensors["lora_embedding_A"]).T
    a, b = tensors["lora_A"], tensors["lora_B"]
    a = a * tensors["lora_E"] if "lora_E" in tensors else a
    delta = scale * b.reshape(b.shape[0], -1) @ a.reshape(a.shape[0], -1)
    return delta.T if config.get("fan_in_fan_out") else delta.reshape(shape)


def _loha(tensors: Params, scale: float, shape: tuple[int, ...]) -> np.ndarray:
    if "hada_t1" in tensors:
        first = _tucker(tensors["hada_t1"], tensors["hada_w1_a"], tensors["hada_w1_b"])
        second = _tucker(tensors["hada_t2"], tensors["hada_w2_a"], tensors["hada_w2_b"])
    else:
        first = tensors["hada_w1_a"] @ tensors["hada_w1_b"]
        second = tensors["hada_w2_a"] @ tensors["hada_w2_b"]
    return (scale * first * second).reshape(shape)


def _lokr(tensors: Params, scale: float, shape: tuple[int, ...]) -> np.ndarray:
    first = (
        tensors["lokr_w1"] if "lokr_w1" in tensors else tensors["lokr_w1_a"] @ tensors["lokr_w1_b"]
    )
    if "lokr_w2" in tensors:
        second = tensors["lokr_w2"]
    elif "lokr_t2" in tensors:
        second = _tucker(tensors["lokr_t2"], tensors["lokr_w2_a"], tensors["lokr_w2_b"])
    else:
        second = tensors["lokr_w2_a"] @ tensors["lokr_w2_b"]
    if second.ndim == 4:
        first = first[:, :, None, None]
    return (scale * np.kron(first, second)).reshape(shape)


def rotation(numbers: np.ndarray, config: Mapping, width: int) -> np.ndarray:
    """Returns OFT's R, (width, width), from its upper triangles (blocks, b (b - 1) / 2)."""
    size = int((1 + np.sqrt(1 + 8 * numbers.shape[1])) / 2)
    rows, cols = np.triu_indices(size, 1)
    blocks = []
    for triangle in numbers:
        q = np.zeros((size, size))
        q[rows, cols] = triangle
        q = q - q.T
        norm = np.linalg.norm(q)
        limit = config["eps"] / np.sqrt(len(numbers))
        if config["coft"] and norm > limit:
            q = q * (limit / norm)
        eye = np.eye(size)
        terms = config["num_cayley_neumann_terms"]
        if config["use_cayley_neumann"]:
            # n terms; n = 3 gives the same as n = 4, because PEFT's last, single power is then Q^3.
            last = 0 if terms < 3 else max(terms, 4) - 1
            powers = range(1, last or terms)
            series = sum((2 * np.linalg.matrix_power(q, k) for k in powers), np.zeros_like(q))
            blocks.append(eye + series + (np.linalg.matrix_power(q, last) if last else 0))
        else:
            blocks.append((eye - q) @ np.linalg.inv(eye + q))
    out = np.zeros((width, width))
    for i in range(width // size):
        at = slice(i * size, (i + 1) * size)
        out[at, at] = blocks[i % len(blocks)]
    return out


def _dora_norm(w: np.ndarray, embedding: bool, transposed: bool) -> np.ndarray:
    if w.ndim == 2:
        # An embedding's norm is over the vocabulary; GPT-2's Conv1D is (in, out).
        keep_columns = embedding or transposed
        return np.linalg.norm(w, axis=0 if keep_columns else 1)
    return np.sqrt((w**2).sum(axis=tuple(range(1, w.ndim))))


def _apply(
    weight: np.ndarray, bias: np.ndarray | None, base: Params, update: tuple[Params, dict, str]
) -> tuple[np.ndarray, np.ndarray | None]:
    tensors, config, site = update
    w0, bias0 = base["weight"], base.get("bias")
    kind = config["peft_type"]
    if kind == "OFT":
        key = "oft_embedding_R" if "oft_embedding_R" in tensors else "oft_R"
        flat = weight.reshape(weight.shape[0], -1)
        r = rotation(tensors[key], config, flat.shape[1])
        return (flat @ (r if key == "oft_embedding_R" else r.T)).reshape(weight.shape), bias
    if kind == "SHIRA":
        weight = weight.copy()
        np.add.at(weight, tuple(tensors["shira_indices"].astype(int)), tensors["shira_weight"])
        return weight, bias
    if kind == "LOHA":
        return weight + _loha(tensors, _scale(config, site), weight.shape), bias
    if kind == "LOKR":
        return weight + _lokr(tensors, _scale(config, site), weight.shape), bias
    delta = _lora(tensors, config, site, weight.shape)
    if "lora_B.bias" in tensors:
        bias = (0 if bias is None else bias) + _scale(config, site) * tensors["lora_B.bias"]
    if "lora_magnitude_vector" not in tensors:
        return weight + delta, bias
    embedding, transposed = "lora_embedding_A" in tensors, bool(config.get("fan_in_fan_out"))
    c = tensors["lora_magnitude_vector"].reshape(-1) / _dora_norm(w0 + delta, embedding, transposed)
    broadcast_shape = (1, -1) if embedding or transposed else (-1, *(1,) * (weight.ndim - 1))
    if bias is not None:
        # PEFT subtracts the base's bias, scales, and adds it back, so it also scales what earlier
        # adapters added to the bias (lora_bias).
        bias0 = np.zeros_like(bias) if bias0 is None else bias0
        bias = bias0 + c * (bias - bias0)
    return c.reshape(broadcast_shape) * (weight + delta), bias


def fold(params: Mapping[str, np.ndarray], folders: Sequence[Path]) -> Params:
    """Returns weights equal to PEFT's forward for these folders, loaded in this order."""
    chains: dict[str, list[tuple[Params, dict, str]]] = {}
    out = {name: np.array(value) for name, value in params.items()}
    for folder in folders:
        config = json.loads((folder / "adapter_config.json").read_text())
        sites: dict[str, Params] = {}
        for name, tensor in load_file(folder / "adapter_model.safetensors").items():
            if match := _KEYS.match(name):
                key = match["key"] + (".bias" if match["tail"] == ".bias" else "")
                sites.setdefault(match["site"], {})[key] = tensor
            else:  # a trained bias, or a module saved whole
                module_name = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
                assert module_name in out, f"{folder}: {name}"
                out[module_name] = tensor
        for site, tensors in sites.items():
            chains.setdefault(site, []).append((tensors, config, site))
    for site, stack in chains.items():
        base = {key: out[f"{site}.{key}"] for key in ("weight", "bias") if f"{site}.{key}" in out}
        w, bias = base["weight"], base.get("bias")
        # Consecutive OFT adapters share one wrapper, whose first adapter rotates the *input* first,
        # so the weight last. An embedding's wrapper rotates the output, so there the order is
        # unchanged.
        for is_oft, run in groupby(stack, key=lambda update: "oft_R" in update[0]):
            for update in reversed(list(run)) if is_oft else run:
                w, bias = _apply(w, bias, base, update)
        out[f"{site}.weight"] = w
        if bias is not None:
            out[f"{site}.bias"] = bias
    return out
