"""The methods entry by entry in NumPy, written from the papers, without jaxmix.

Each takes the tensors of the adapters, and their weights with signs: a negative weight is the
positive one of the negated adapter.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["NAIVE", "knots", "model_stock", "sce", "slerp"]

Tensors = Sequence[np.ndarray]


def linear(tensors: Tensors, weights: Sequence[float]) -> np.ndarray:
    out = np.zeros_like(tensors[0])
    for tensor, weight in zip(tensors, weights, strict=True):
        out = out + weight * tensor
    return out


def between(tensor: np.ndarray, start: int, stop: int) -> np.ndarray:
    """Returns the entries from the start-th to the stop-th by size, the largest first."""
    flat = tensor.reshape(-1)
    order = sorted(range(flat.size), key=lambda i: -abs(flat[i]))
    out = np.zeros_like(flat)
    for i in order[start:stop]:
        out[i] = flat[i]
    return out.reshape(tensor.shape)


def trim(tensor: np.ndarray, density: float) -> np.ndarray:
    return between(tensor, 0, int(density * tensor.size))


def elect(tensors: Tensors, weights: Sequence[float], majority: str) -> np.ndarray:
    """Returns TIES after its trim, entry by entry."""
    out = np.zeros_like(tensors[0])
    signed = [np.sign(w) * t for w, t in zip(weights, tensors, strict=True)]
    for place in np.ndindex(out.shape):
        values = [tensor[place] for tensor in signed]
        votes = sum(values) if majority == "total" else sum(np.sign(v) for v in values)
        elected = 1 if votes >= 0 else -1
        kept = [abs(w) * v for w, v in zip(weights, values, strict=True) if np.sign(v) == elected]
        out[place] = sum(kept) / len(kept) if kept else 0
    return out


def ties(
    tensors: Tensors, weights: Sequence[float], density: float, majority: str = "total"
) -> np.ndarray:
    return elect([trim(t, density) for t in tensors], weights, majority)


def magnitude_prune(tensors: Tensors, weights: Sequence[float], density: float) -> np.ndarray:
    return linear([trim(t, density) for t in tensors], weights)


def breadcrumbs(
    tensors: Tensors, weights: Sequence[float], density: float, outliers: float = 0.01
) -> np.ndarray:
    size = tensors[0].size
    kept, top = int(density * size), int(outliers * size)
    bottom = size - kept - top
    if bottom < 0:
        top += bottom
    return linear([between(t, top, top + kept) for t in tensors], weights)


def sce(tensors: Tensors, density: float) -> np.ndarray:
    shape = tensors[0].shape
    spread = np.array([np.var([t[place] for t in tensors]) for place in np.ndindex(shape)])
    spread = spread.reshape(shape)
    if density < 1:
        kept = between(spread, 0, int(np.count_nonzero(spread) * density)) != 0
        tensors = [t * kept for t in tensors]
    energy = [float((t**2).mean()) for t in tensors]
    share = [e / sum(energy) if sum(energy) else 1 / len(energy) for e in energy]
    out = np.zeros(shape)
    for place in np.ndindex(shape):
        values = [t[place] for t in tensors]
        elected = 1 if sum(values) >= 0 else -1
        mass = sum(s for s, v in zip(share, values, strict=True) if np.sign(v) == elected)
        total = sum(s * v for s, v in zip(share, values, strict=True) if np.sign(v) == elected)
        out[place] = total / mass if mass else 0
    return out


def cosine(x: np.ndarray, y: np.ndarray) -> float:
    norms = math.sqrt((x**2).sum()) * math.sqrt((y**2).sum())
    return float((x * y).sum() / norms) if norms else 0.0


def model_stock(tensors: Tensors) -> np.ndarray:
    n = len(tensors)
    cosines = [cosine(tensors[i], tensors[j]) for i in range(n) for j in range(i)]
    mean = max(sum(cosines) / len(cosines), 0.0)
    t = n * mean / (1 + (n - 1) * mean)
    return t * np.mean(tensors, 0)


def slerp(tensors: Tensors, weights: Sequence[float]) -> np.ndarray:
    one, two = tensors
    t = weights[1] / sum(weights)
    angle = math.acos(max(-1.0, min(1.0, cosine(one, two))))
    if abs(math.cos(angle)) > 0.9995:
        return (1 - t) * one + t * two
    return (math.sin((1 - t) * angle) * one + math.sin(t * angle) * two) / math.sin(angle)


def knots(
    tensors: Tensors, weights: Sequence[float], density: float, majority: str = "total"
) -> np.ndarray:
    u, s, vt = np.linalg.svd(np.concatenate(tensors, 1), full_matrices=False)
    rank = int((s > s[0] * 1e-12).sum())
    vt = np.where(np.abs(s[:, None] * vt) > s[0] * 1e-12, vt, 0)  # rounding has no vote
    parts = np.split(vt[:rank], len(tensors), axis=1)
    return (u[:, :rank] * s[:rank]) @ ties(parts, weights, density, majority)


# Those that take weights, and with a density or without.
NAIVE: dict[str, Any] = {
    "linear": linear,
    "cat": linear,
    "svd": linear,
    "ties": ties,
    "ties_svd": ties,
    "magnitude_prune": magnitude_prune,
    "magnitude_prune_svd": magnitude_prune,
    "breadcrumbs": breadcrumbs,
    "knots": knots,
}
