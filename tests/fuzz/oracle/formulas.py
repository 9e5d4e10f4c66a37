"""Computes each family's effect on a weight, naively and densely, in the weights' dtype.

Weights are (out, in); a convolution's kernel is flattened into ``in``. `base` is the base's weight,
`weight` the result of the adapters applied before.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..tensorfile import BadFileError

__all__ = [
    "Change",
    "Leaves",
    "added",
    "ia3",
    "kron_delta",
    "loha_delta",
    "lora_delta",
    "oft",
    "rebased",
    "replaced",
    "scattered",
]

Array = np.ndarray


@dataclass(frozen=True)
class Leaves:
    """A module's tensors.

    Args:
        base: The base's weight.
        weight: The current weight.
        bias: The current bias; None if the module has none.
    """

    base: Array
    weight: Array
    bias: Array | None


# From a module's tensors to its weight and its bias.
Change = Callable[[Leaves], tuple[Array, Array | None]]


def added(
    delta: Callable[[Any], Array],
    *,
    magnitude: Array | None = None,
    bias: Array | None = None,
    eps: float = 0.0,
    axis: int = 1,
) -> Change:
    """``W + Δ``, or with a magnitude m DoRA's ``m / (‖W₀ + Δ‖ + eps) · (W + Δ)``, and ``b + bias``.

    Args:
        delta: Maps a dtype to Δ (out, in).
        magnitude: DoRA's, (out,), or (in,) where the norms are the columns'.
        bias: The number added to the bias.
        eps: The number added to DoRA's norm.
        axis: The axis of the norms.
    """

    def change(leaves: Leaves) -> tuple[Array, Array | None]:
        kind = leaves.weight.dtype
        new = leaves.weight + delta(kind)
        if magnitude is not None:
            norm = np.sqrt(((leaves.base + delta(kind)) ** 2).sum(axis)) + kind.type(eps)
            norm = np.where(np.isinf(norm), np.nan, norm)
            rescaling = magnitude.astype(kind) / norm
            new = (rescaling[:, None] if axis else rescaling) * new
        return new, _plus(leaves.bias, bias)

    return change


def _plus(x: Array | None, y: Array | None) -> Array | None:
    if y is None:
        return x
    if x is None:
        raise BadFileError("a module without a bias")
    return x + y.astype(x.dtype)


def replaced(weight: Array | None, bias: Array | None) -> Change:
    """Replaces leaves by fully trained ones."""

    def change(leaves: Leaves) -> tuple[Array, Array | None]:
        kind = leaves.weight.dtype
        new = leaves.weight if weight is None else weight.astype(kind)
        return new, leaves.bias if bias is None else bias.astype(kind)

    return change


def rebased(weight: Array, bias: Array | None) -> Change:
    """Replaces the base's weight and keeps earlier additions; also replaces the bias."""

    def change(leaves: Leaves) -> tuple[Array, Array | None]:
        kind = leaves.weight.dtype
        new = leaves.weight + (weight.astype(kind) - leaves.base)
        return new, leaves.bias if bias is None else bias.astype(kind)

    return change


def scattered(values: Array, places: Array) -> Change:
    """SHiRA: adds to single numbers of the weight."""

    def change(leaves: Leaves) -> tuple[Array, Array | None]:
        new = leaves.weight.copy()
        np.add.at(new, tuple(places), values.astype(new.dtype))
        return new, leaves.bias

    return change


def ia3(factor: Array, *, is_feedforward: bool) -> Change:
    """``W · diag(l)`` for feed-forward layers, else ``diag(l) · W`` and ``l · b``."""

    def change(leaves: Leaves) -> tuple[Array, Array | None]:
        numbers = factor.reshape(-1).astype(leaves.weight.dtype)
        if is_feedforward:
            return leaves.weight * numbers[None], leaves.bias
        bias = leaves.bias if leaves.bias is None else leaves.bias * numbers
        return leaves.weight * numbers[:, None], bias

    return change


def oft(
    numbers: Array,
    *,
    terms: int | None,
    eps: float | None = None,
    ends_twice: bool = False,
    strength: float = 1.0,
) -> Change:
    """``W · Rᵀ``, with R block-diagonal and made of skew matrices, given by their upper triangles.

    Args:
        numbers: (blocks, b(b − 1)/2); one block is for all.
        terms: The terms of PEFT's Neumann series; None for Cayley's map.
        eps: The bound of COFT; None if absent.
        ends_twice: Whether the series' last term counts twice, as before peft 0.18.
        strength: The number by which the skew matrices are multiplied.
    """

    def change(leaves: Leaves) -> tuple[Array, Array | None]:
        kind = leaves.weight.dtype
        count, size = numbers.shape[0], leaves.weight.shape[1]
        width = round((1 + np.sqrt(1 + 8 * numbers.shape[1])) / 2)
        blocks = np.zeros((count, width, width), kind)
        rows, columns = np.triu_indices(width, 1)
        blocks[:, rows, columns] = numbers.astype(kind)
        blocks = blocks - blocks.swapaxes(1, 2)
        if eps is not None:
            bound = kind.type(eps / np.sqrt(count))
            norms = np.sqrt((blocks**2).sum((1, 2), keepdims=True))
            blocks = np.where(norms <= bound, blocks, blocks * (bound / norms))
        turns = [_rotation(kind.type(strength) * block, terms, ends_twice) for block in blocks]
        if count == 1:
            turns = turns * (size // width)
        new = leaves.weight.copy()
        for i, turn in enumerate(turns):
            block_rows = slice(i * width, (i + 1) * width)
            new[:, block_rows] = leaves.weight[:, block_rows] @ turn.T
        return new, leaves.bias

    return change


def _rotation(skew: Array, terms: int | None, ends_twice: bool) -> Array:
    """Returns one block of R."""
    eye = np.eye(len(skew), dtype=skew.dtype)
    if terms is None:
        return (eye - skew) @ np.linalg.inv(eye + skew)
    if terms == 1:
        return eye
    if terms == 2:
        return eye + 2 * skew
    # PEFT's code gives three terms and four the same sum.
    last = max(terms, 4) - 1
    rotation = eye + 2 * skew + 2 * (skew @ skew)
    for n in range(3, last):
        rotation = rotation + 2 * np.linalg.matrix_power(skew, n)
    return rotation + (2 if ends_twice else 1) * np.linalg.matrix_power(skew, last)


def lora_delta(a: Array, b: Array, scale: float) -> Callable[[Any], Array]:
    """``s·B·A`` of A (r, in) and B (out, r)."""
    return lambda kind: kind.type(scale) * (b.astype(kind) @ a.astype(kind))


def loha_delta(f: Mapping[str, Array], scale: float) -> Callable[[Any], Array]:
    """``s·(B₁A₁)⊙(B₂A₂)``."""

    def delta(kind: Any) -> Array:
        first, second = (
            f[f"hada_w{i}_a"].astype(kind) @ f[f"hada_w{i}_b"].astype(kind) for i in "12"
        )
        return kind.type(scale) * first * second

    return delta


def kron_delta(
    left: tuple[Array, ...], right: tuple[Array, ...], scale: float
) -> Callable[[Any], Array]:
    """``s·X ⊗ Y``, each of them whole or a product of two."""

    def whole(parts: tuple[Array, ...], kind: Any) -> Array:
        arrays = [part.astype(kind) for part in parts]
        return arrays[0] if len(arrays) == 1 else arrays[0] @ arrays[1]

    def delta(kind: Any) -> Array:
        x, y = whole(left, kind), whole(right, kind)
        # A Conv2d's kernel belongs to Y alone; of other axes `np.kron` puts those of X in front.
        x = x.reshape(*x.shape, 1, 1) if x.ndim == 2 and y.ndim == 4 else x
        return kind.type(scale) * np.kron(x, y)

    return delta
