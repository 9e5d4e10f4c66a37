"""Joins updates of weights that are the rows of one fused weight: the inverse of `rows_of`."""

from collections.abc import Sequence
from dataclasses import replace
from functools import singledispatch
from typing import Any, cast

import jax.numpy as jnp
import numpy as np

from jaxmix.affine import Base
from jaxmix.families.base import Update
from jaxmix.families.delta import Delta
from jaxmix.families.diag_oft import DiagOFT
from jaxmix.families.loha import LoHa
from jaxmix.families.lokr import LoKr
from jaxmix.families.lora import LoRA
from jaxmix.families.normed import Normed
from jaxmix.families.row_counts import matrix_shape, row_count
from jaxmix.families.rows import Rows
from jaxmix.families.together import Together
from jaxmix.operators import Identity

__all__ = ["join_rows"]

_ADDITIVE = (LoRA, LoHa, LoKr, Delta, Rows)


def join_rows(parts: Sequence[Update | None], sizes: Sequence[int]) -> Update | None:
    """Returns one update of a fused weight from the updates of its parts.

    LoRAs become one with a block-diagonal B, or of the same rank if they share A. LoHas likewise;
    LoKrs become one if they share Y. Other additive updates become a dense difference.

    Args:
        parts: The updates of the parts, in order of their rows; None for a part without one.
        sizes: The number of rows of each part.

    Returns:
        The update; None if they can't be joined into one, or no part has an update.

    Example:
        >>> q, k = (LoRA(np.full((1, 3), n), np.ones((2, 1)), 1.0) for n in (1.0, 2.0))
        >>> joined = join_rows([q, None, k], [2, 2, 2])
        >>> joined.a.shape, joined.b[:, 1].tolist()
        ((2, 3), [0.0, 0.0, 0.0, 0.0, 1.0, 1.0])
        >>> join_rows([q, None, q], [2, 2, 2]).b[:, 0].tolist()
        [1.0, 1.0, 0.0, 0.0, 1.0, 1.0]
    """
    present = [part for part in parts if part is not None]
    if not present or any(
        part is not None and row_count(part) != size
        for part, size in zip(parts, sizes, strict=True)
    ):
        return None
    if any(getattr(part, "transposed", False) for part in present):
        return None
    if len({type(part) for part in present}) == 1:
        joined = _join(present[0], parts, sizes)
        if joined is not None:
            return joined
    return _dense(parts, sizes)


@singledispatch
def _join(first: Update, parts: Sequence[Update | None], sizes: Sequence[int]) -> Update | None:
    """Joins updates of the family of `first` into one of this family; None if impossible."""
    return None


@_join.register
def _(first: LoRA, parts: Sequence[LoRA | None], sizes: Sequence[int]) -> Update | None:
    loras = [part for part in parts if part is not None]
    if any(lora.embedding or lora.kernel != first.kernel for lora in loras):
        return None
    has_norm = first.magnitude is not None
    if any((lora.magnitude is not None) != has_norm for lora in loras):
        return None
    if has_norm and len(loras) < len(parts):
        return None  # the other rows keep the base's norms, which are unknown here
    scale, factors = _with_one_scale([(part and part.scale, part and part.b) for part in parts])
    biases = [None if lora is None else lora.bias for lora in parts]
    bias = None
    if any(bias is not None for bias in biases):
        scaled = [
            None if part is None or part.bias is None else _times(part.bias, part.scale, scale)
            for part in parts
        ]
        bias = _stacked(scaled, sizes)
    a, b = _block_rows([None if part is None else part.a for part in parts], factors, sizes)
    magnitude = np.concatenate([np.asarray(x.magnitude) for x in loras]) if has_norm else None
    return replace(first, **_arrays(a=a, b=b, bias=bias, magnitude=magnitude, scale=scale))


@_join.register
def _(first: LoHa, parts: Sequence[LoHa | None], sizes: Sequence[int]) -> Update | None:
    if any(part is not None and (part.t1 is not None or part.kernel) for part in parts):
        return None
    scale, b1 = _with_one_scale([(part and part.scale, part and part.b1) for part in parts])
    is_shared = _is_shared([(part.a1, part.a2) for part in parts if part is not None])
    a1, b1 = _block_rows([part and part.a1 for part in parts], b1, sizes, is_shared=is_shared)
    b2 = [None if part is None else np.asarray(part.b2) for part in parts]
    a2, b2 = _block_rows([part and part.a2 for part in parts], b2, sizes, is_shared=is_shared)
    return replace(first, **_arrays(a1=a1, b1=b1, a2=a2, b2=b2, scale=scale))


@_join.register
def _(first: LoKr, parts: Sequence[LoKr | None], sizes: Sequence[int]) -> Update | None:
    lokrs = [part for part in parts if part is not None]
    shape = matrix_shape(first)
    if shape is None or not _is_shared([lokr.y for lokr in lokrs]):
        return None
    height = shape[0] // np.shape(first.x[0])[0]
    if any(size % height for size in sizes):
        return None
    scale, tops = _with_one_scale([(part and part.scale, part and part.x[0]) for part in parts])
    is_pair = len(first.x) == 2 and _is_shared([lokr.x[1:] for lokr in lokrs])
    if not is_pair:
        tops = [
            top if part is None or top is None or len(part.x) == 1 else top @ np.asarray(part.x[1])
            for part, top in zip(parts, tops, strict=True)
        ]
    top = _stacked(tops, [size // height for size in sizes])
    x: Any = (top, first.x[1]) if is_pair else (top,)
    return replace(first, x=x, scale=cast(Any, scale))


@_join.register
def _(first: Normed, parts: Sequence[Normed | None], sizes: Sequence[int]) -> Update | None:
    normed = [part for part in parts if part is not None]
    are_alike = all(part.axis == "out" and part.eps == first.eps for part in normed)
    if len(normed) < len(parts) or not are_alike:
        return None  # a norm by input is taken over all rows
    inner = join_rows([part.update for part in normed], sizes)
    if inner is None or not isinstance(inner, LoRA | LoHa | LoKr):
        return None
    magnitude = np.concatenate([np.asarray(part.magnitude) for part in normed])
    return replace(first, update=inner, magnitude=cast(Any, magnitude))


@_join.register
def _(first: Delta, parts: Sequence[Delta | None], sizes: Sequence[int]) -> Update | None:
    leaves = {}
    for name in ("weight", "bias"):
        arrays = [None if part is None else getattr(part, name) for part in parts]
        is_present = any(x is not None for x in arrays)
        leaves[name] = _stacked([_array(x) for x in arrays], sizes) if is_present else None
    return Delta(**_arrays(**leaves))


@_join.register
def _(first: Together, parts: Sequence[Together | None], sizes: Sequence[int]) -> Update | None:
    counts = {len(part.parts) for part in parts if part is not None}
    if len(counts) > 1:
        return None
    joined = [
        join_rows([None if part is None else part.parts[i] for part in parts], sizes)
        for i in range(counts.pop())
    ]
    return None if None in joined else Together(tuple(x for x in joined if x is not None))


@_join.register
def _(first: DiagOFT, parts: Sequence[DiagOFT | None], sizes: Sequence[int]) -> Update | None:
    present = [part for part in parts if part is not None]
    are_alike = all(
        part.side == "out" and part.bound is None and part.factor == first.factor and
        (part.rescale is None) == (first.rescale is None)
        for part in present
    )  # fmt: skip
    blocks = [None if part is None else part.blocks for part in parts]
    if not are_alike or first.blocks is None or any(part.blocks is None for part in present):
        return None
    b = first.blocks.shape[1]
    if any(x is not None and x.shape[1] != b for x in blocks) or any(size % b for size in sizes):
        return None
    joined = _stacked([_array(x) for x in blocks], [size // b for size in sizes])
    rescale = None
    if first.rescale is not None:
        ones = [
            np.ones(size, joined.dtype) if part is None else np.asarray(part.rescale)
            for part, size in zip(parts, sizes, strict=True)
        ]
        rescale = np.concatenate(ones)
    return replace(first, **_arrays(blocks=joined, rescale=rescale))


def _dense(parts: Sequence[Update | None], sizes: Sequence[int]) -> Update | None:
    """A dense difference; None unless all updates only add to the weight."""
    deltas: list[np.ndarray | None] = []
    for part in parts:
        shape = None if part is None else matrix_shape(part)
        if part is None:
            deltas.append(None)
            continue
        has_more = getattr(part, "magnitude", None) is not None or part.has_bias
        has_more = has_more or getattr(part, "embedding", False) or getattr(part, "kernel", ())
        if not isinstance(part, _ADDITIVE) or shape is None or has_more:
            return None
        step = part.weight_map(Base(None, shape), jnp.ones((), np.float32))
        if not isinstance(step.left, Identity) or not isinstance(step.right, Identity):
            return None
        deltas.append(np.asarray(step.shift.dense()))
    return Delta(**_arrays(weight=_stacked(deltas, sizes)))


def _with_one_scale(factors: Sequence[tuple[Any, Any]]) -> tuple[Any, list[np.ndarray | None]]:
    """A common scale, and the factors, rescaled where their own scales differ from it."""
    scales = {float(scale) for scale, factor in factors if factor is not None}
    common = scales.pop() if len(scales) == 1 else 1.0
    return common, [None if x is None else _times(x, scale, common) for scale, x in factors]


def _times(x: Any, scale: Any, by: float) -> np.ndarray:
    """``x · scale / by``, in x's dtype; x itself if ``scale`` equals ``by``."""
    x, scale = np.asarray(x), float(scale)
    return x if scale == by else (x.astype(np.float64) * (scale / by)).astype(x.dtype)


def _block_rows(
    left: Sequence[Any],
    right: Sequence[np.ndarray | None],
    sizes: Sequence[int],
    *,
    is_shared: bool | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The factors A (r, in) and B (out, r) of several products, stacked vertically."""
    present = [np.asarray(a) for a in left if a is not None]
    if _is_shared([(a,) for a in present]) if is_shared is None else is_shared:
        return present[0], _stacked(right, sizes)
    dtype = np.result_type(*(b for b in right if b is not None))
    b = np.zeros((sum(sizes), sum(len(a) for a in present)), dtype)
    top = at = 0
    for block, size in zip(right, sizes, strict=True):
        if block is not None:
            b[top : top + size, at : at + block.shape[1]] = block
            at += block.shape[1]
        top += size
    return np.concatenate(present), b


def _stacked(parts: Sequence[np.ndarray | None], sizes: Sequence[int]) -> np.ndarray:
    """The parts, stacked vertically, with zeros for those that are absent."""
    like = next(np.asarray(part) for part in parts if part is not None)
    return np.concatenate(
        [
            np.zeros((size, *like.shape[1:]), like.dtype) if part is None else np.asarray(part)
            for part, size in zip(parts, sizes, strict=True)
        ]
    )


def _is_shared(groups: Sequence[Sequence[Any]]) -> bool:
    """Whether all groups hold the same arrays."""
    return all(
        len(group) == len(groups[0])
        and all(np.array_equal(x, y) for x, y in zip(group, groups[0], strict=True))
        for group in groups
    )


def _array(x: Any) -> np.ndarray | None:
    return None if x is None else np.asarray(x)


def _arrays(**fields: Any) -> dict[str, Any]:
    """Hides from the type checker that fields are NumPy's arrays instead of JAX's."""
    return fields
