"""Converts a pair of factors to updates, one per layer of a stack."""

import math
import re
from typing import Any

import numpy as np

from jaxmix.converters.adapters.qwix.pairs import Pair
from jaxmix.errors import ShapeError
from jaxmix.families import LoRA, Update

__all__ = ["updates_of"]

# The names of a module's weight; a leaf with any other name is a site by itself.
_WEIGHTS = ("kernel", "w", "weight", "embedding")
# The numbers of axes of openpi's factors in one layer: (N, D, r), (2, K, D, r), (2, D, r), (F, r).
_AXES = {"q_einsum": 3, "kv_einsum": 4, "qkv_einsum": 4, "attn_vec_einsum": 3, "gating_einsum": 3}


def updates_of(pair: Pair, scale: float, axis: int | None) -> list[tuple[str, Update]]:
    """Returns a LoRA for each layer of a leaf.

    Args:
        pair: The factors.
        scale: The scale.
        axis: The axis along which layers are stacked, if the shapes do not determine it.

    Returns:
        Each site with its LoRA. A site is named by the leaf's path. Each of several stacked layers
        has a site, with its number after the part of the path that ends in ``layers``.

    Raises:
        ShapeError: If the factors do not fit each other.
    """
    a, b = pair.a, pair.b
    if min(a.ndim, b.ndim) < 2 or 0 in (*a.shape, *b.shape):
        raise ShapeError(f"{a.shape} and {b.shape}")
    head, _, last = pair.leaf.rpartition(".")
    is_module = pair.origin in ("einsum", "flax", "plain")
    site = head if last in _WEIGHTS and head and not is_module else pair.leaf
    parts = site.split(".")
    stacks = [i for i, part in enumerate(parts) if part.endswith(("layers", "blocks"))]
    at = stacks[-1] + 1 if stacks else None
    can_stack = at is not None and not "".join(parts[at : at + 1]).isdigit()
    lora = _openpi if pair.origin in ("einsum", "openpi") else _lora
    axes = _AXES.get(re.sub(r"_\d+$", "", last), 2) if pair.origin in ("einsum", "openpi") else 2
    if at is None or not can_stack or a.ndim <= axes:
        return [(site, lora(last, a, b, scale))]
    stacked = 0 if pair.origin in ("einsum", "openpi") else _layers_axis(a, b, axis)
    layers = [(np.take(a, i, stacked), np.take(b, i, stacked)) for i in range(a.shape[stacked])]
    return [
        (".".join((*parts[:at], str(i), *parts[at:])), lora(last, layer_a, layer_b, scale))
        for i, (layer_a, layer_b) in enumerate(layers)
    ]


def _layers_axis(a: Any, b: Any, axis: int | None) -> int:
    """The axis of the layers, 0 or 1, with which the factors' ranks agree."""
    rank = a.shape[-1]
    possible = [
        candidate
        for candidate, agrees in ((0, b.shape[1] == rank), (1, b.shape[0] == rank))
        if agrees and b.ndim > 2 and a.shape[candidate] == b.shape[candidate]
    ]
    if axis is not None and axis in possible:
        return axis
    if axis is None and len(possible) == 1:
        return possible[0]
    problem = "either axis may be that of the layers" if len(possible) > 1 else "no axis of layers"
    raise ShapeError(f"{a.shape} and {b.shape}: {problem}")


def _lora(last: str, a: Any, b: Any, scale: float) -> Update:
    """The LoRA of a matrix, or of the several axes of an einsum."""
    rank = a.shape[-1]
    if b.shape[0] != rank or (a.ndim > 2 and b.ndim > 2 and a.shape[1] == b.shape[1]):
        # A common axis is a batch: each head has its own LoRA, which is not a single matrix.
        raise ShapeError(f"{a.shape} and {b.shape}")
    return LoRA(a.reshape(-1, rank).T, b.reshape(rank, -1).T, scale)


def _openpi(last: str, a: Any, b: Any, scale: float) -> Update:
    """The LoRA of openpi's factors (…, in, r) and (…, r, out), of an einsum over the last two axes.

    The einsum that sums over heads, ``BTNH,NHD->BTD``, also sums over those of b, so its LoRA has
    the same rank. All others keep the leading axes: each head, key, value, gate and up projection
    has its own factors, which become the diagonal blocks of one LoRA of a larger rank.
    """
    rank = a.shape[-1]
    if b.ndim != a.ndim or b.shape[-2] != rank or a.shape[:-2] != b.shape[:-2]:
        raise ShapeError(f"{a.shape} and {b.shape}")
    if last.startswith("attn_vec_einsum"):
        return LoRA(a.reshape(-1, rank).T, b.sum(axis=0).T, scale)
    heads = math.prod(a.shape[:-2])
    a, b = a.reshape(heads, -1, rank), b.reshape(heads, rank, -1)
    rows: Any = np.zeros((heads, b.shape[2], heads, rank), b.dtype)
    for head in range(heads):
        rows[head, :, head] = b[head].T
    columns = a.transpose(0, 2, 1).reshape(heads * rank, -1)
    return LoRA(columns, rows.reshape(heads * b.shape[2], heads * rank), scale)
