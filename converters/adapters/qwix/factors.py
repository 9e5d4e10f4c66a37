"""One pair of factors as updates: of each layer of a stack, of an einsum's heads."""

import math
import re
from typing import Any

import numpy as np

from jaxmix.converters.adapters.qwix.pairs import Pair
from jaxmix.errors import ShapeError
from jaxmix.families import LoRA, Update

__all__ = ["updates_of"]

# A weight by these names is its module's; by any other it has a name of its own in it.
_WEIGHTS = ("kernel", "w", "weight", "embedding")
# How many axes openpi's factors of one layer have: (N, D, r), (2, K, D, r), (2, D, r), (F, r).
_AXES = {"q_einsum": 3, "kv_einsum": 4, "qkv_einsum": 4, "attn_vec_einsum": 3, "gating_einsum": 3}


def updates_of(pair: Pair, scale: float, axis: int | None) -> list[tuple[str, Update]]:
    """A LoRA for each layer of a leaf.

    Args:
        pair: the factors.
        scale: the scale.
        axis: the axis along which layers are stacked, where shapes leave it open.

    Returns:
        Each site with its LoRA. A site is named by the leaf's path; of stacked layers each has a
        site, its number after the word that ends in ``layers``.

    Raises:
        ShapeError: if the factors do not fit each other.
    """
    a, b = pair.a, pair.b
    if min(a.ndim, b.ndim) < 2 or 0 in (*a.shape, *b.shape):
        raise ShapeError(f"{a.shape} and {b.shape}")
    head, _, last = pair.leaf.rpartition(".")
    is_module = pair.way in ("einsum", "flax", "plain")
    site = head if last in _WEIGHTS and head and not is_module else pair.leaf
    parts = site.split(".")
    stacks = [i for i, part in enumerate(parts) if part.endswith(("layers", "blocks"))]
    at = stacks[-1] + 1 if stacks else None
    can_stack = at is not None and not "".join(parts[at : at + 1]).isdigit()
    lora = _openpi if pair.way in ("einsum", "openpi") else _lora
    one = _AXES.get(re.sub(r"_\d+$", "", last), 2) if pair.way in ("einsum", "openpi") else 2
    if at is None or not can_stack or a.ndim <= one:
        return [(site, lora(last, a, b, scale))]
    where = 0 if pair.way in ("einsum", "openpi") else _layers_axis(a, b, axis)
    layers = [(np.take(a, i, where), np.take(b, i, where)) for i in range(a.shape[where])]
    return [
        (".".join((*parts[:at], str(i), *parts[at:])), lora(last, one, two, scale))
        for i, (one, two) in enumerate(layers)
    ]


def _layers_axis(a: Any, b: Any, axis: int | None) -> int:
    """The axis of the layers: 0 or 1, as the factors' ranks meet."""
    rank = a.shape[-1]
    possible = [
        at
        for at, meets in ((0, b.shape[1] == rank), (1, b.shape[0] == rank))
        if meets and b.ndim > 2 and a.shape[at] == b.shape[at]
    ]
    if axis is not None and axis in possible:
        return axis
    if axis is None and len(possible) == 1:
        return possible[0]
    said = "either axis may be that of the layers" if len(possible) > 1 else "no axis of layers"
    raise ShapeError(f"{a.shape} and {b.shape}: {said}")


def _lora(last: str, a: Any, b: Any, scale: float) -> Update:
    """One pair, of a matrix or of an einsum's several axes."""
    rank = a.shape[-1]
    if b.shape[0] != rank or (a.ndim > 2 and b.ndim > 2 and a.shape[1] == b.shape[1]):
        # An axis that both have is a batch: each head its own LoRA, which no one matrix is.
        raise ShapeError(f"{a.shape} and {b.shape}")
    return LoRA(a.reshape(-1, rank).T, b.reshape(rank, -1).T, scale)


def _openpi(last: str, a: Any, b: Any, scale: float) -> Update:
    """One pair of openpi's: (…, in, r) and (…, r, out), of an einsum over the last two axes.

    The einsum that sums over heads, ``BTNH,NHD->BTD``, sums over those of b too, so that its LoRA
    is one low rank. All others keep the axes before: each head, and each of key and value or of
    gate and up, has factors of its own, which lie along the diagonal of one LoRA of a larger rank.
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
