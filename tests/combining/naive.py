"""The methods of combining, entry by entry in NumPy, written from the papers without jaxmix.

Each takes the adapters' tensors and signed weights: a negative weight stands for the
positive weight of the negated adapter.
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
    """The entries ranked from ``start`` to ``stop`` by size, the largest first."""
    flat = tensor.reshape(-1)
    order = sorted(range(flat.size), key=lambda i: -abs(flat[i]))
    out = np.zeros_like(flat)
    for i in order[start:stop]:
        out[i] = flat[i]
    return out.reshape(tensor.shape)


def trim(tensor: np.ndarray, density: float) -> np.ndarray:
    return between(tensor, 0, int(density * tensor.size))


def elect(tensors: Tensors, weights: Sequence[float], majority: str) -> np.ndarray:
    """TIES after its trim, position by position."""
    out = np.zeros_like(tensors[0])
    signed = [np.sign(w) * t for w, t in zip(weights, tensors, strict=True)]
    for index in np.ndindex(out.shape):
        values = [tensor[index] for tensor in signed]
        votes = sum(values) if majority == "total" else sum(np.sign(v) for v in values)
        elected = 1 if votes >= 0 else -1
        agreeing = [
            abs(w) * v for w, v in zip(weights, values, strict=True) if np.sign(v) == elected
        ]
        out[index] = sum(agreeing) / len(agreeing) if agreeing else 0
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
    count, top = int(density * size), int(outliers * size)
    bottom = size - count - top
    if bottom < 0:
        top += bottom
    return linear([between(t, top, top + count) for t in tensors], weights)


def sce(tensors: Tensors, density: float) -> np.ndarray:
    shape = tensors[0].shape
    spread = np.array([np.var([t[index] for t in tensors]) for index in np.ndindex(shape)])
    spread = spread.reshape(shape)
    if density < 1:
        mask = between(spread, 0, int(np.count_nonzero(spread) * density)) != 0
        tensors = [t * mask for t in tensors]
    energy = [float((t**2).mean()) for t in tensors]
    share = [e / sum(energy) if sum(energy) else 1 / len(energy) for e in energy]
    out = np.zeros(shape)
    for index in np.ndindex(shape):
        values = [t[index] for t in tensors]
        elected = 1 if sum(values) >= 0 else -1
        mass = sum(s for s, v in zip(share, values, strict=True) if np.sign(v) == elected)
        total = sum(s * v for s, v in zip(share, values, strict=True) if np.sign(v) == elected)
        out[index] = total / mass if mass else 0
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
    first, second = tensors
    t = weights[1] / sum(weights)
    angle = math.acos(max(-1.0, min(1.0, cosine(first, second))))
    if abs(math.cos(angle)) > 0.9995:
        return (1 - t) * first + t * second
    return (math.sin((1 - t) * angle) * first + math.sin(t * angle) * second) / math.sin(angle)


def knots(
    tensors: Tensors, weights: Sequence[float], density: float, majority: str = "total"
) -> np.ndarray:
    u, s, vt = np.linalg.svd(np.concatenate(tensors, 1), full_matrices=False)
    rank = int((s > s[0] * 1e-12).sum())
    vt = np.where(np.abs(s[:, None] * vt) > s[0] * 1e-12, vt, 0)  # rounding has no vote
    blocks = np.split(vt[:rank], len(tensors), axis=1)
    return (u[:, :rank] * s[:rank]) @ ties(blocks, weights, density, majority)


# The methods that take weights. Some also take a density.
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
