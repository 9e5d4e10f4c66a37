"""Views of a weight that keeps base and map separate: axes split, merged or sliced."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jaxmix.placement.quantized import is_quantized
from jaxmix.unmerged.weight import Weight

__all__ = ["by_layer", "picked", "reshaped", "sliced", "unstacked"]


def reshaped(weight: Weight, sizes: Sequence[int]) -> Weight | None:
    """Reshapes a weight if rows stay rows and columns stay columns; otherwise returns None."""
    groups = _groups(weight.shape, sizes)
    rows, cols, stack = weight.axes
    if groups is None:
        return None
    new_stack: int | None = None
    taken: dict[int, list[int]] = {}
    for old, new in groups:
        big = [k for k in old if weight.shape[k] != 1] or old[:1]
        if not big:  # a new axis of size one counts as rows
            taken[-1] = [*taken.get(-1, []), *new]
            continue
        if big == [stack] and len(new) == 1:
            new_stack = new[0]
            continue
        for axes in (rows, cols):
            if all(k in axes for k in big):
                at = [axes.index(k) for k in big]
                if at != list(range(at[0], at[0] + len(at))):
                    return None
                taken[big[0]] = new
                for k in big[1:]:
                    taken[k] = []
                break
        else:
            return None
    ones = {k for k in range(len(weight.shape)) if k not in taken and k != stack}
    rows_ = [n for k in rows if k not in ones for n in taken[k]] + taken.get(-1, [])
    cols_ = [n for k in cols if k not in ones for n in taken[k]]
    if stack is not None and new_stack is None:
        return None
    try:
        base = weight.base.reshape(tuple(sizes))
    except ValueError:
        if not is_quantized(weight.base):
            raise
        return None  # its scales do not fit the new axes
    n = len(sizes)
    return replace(
        weight,
        base=base,
        out=tuple(k - n for k in rows_),
        into=tuple(k - n for k in cols_),
        stack=None if new_stack is None else new_stack - n,
    )


def _groups(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]] | None:
    """Splits the axes of two shapes into the smallest groups of equal products."""
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        mine, theirs = [], []
        if i < len(old):
            mine, i = [i], i + 1
        if j < len(new) and not (mine and old[mine[0]] == 1 and new[j] != 1):
            theirs, j = [j], j + 1
        if mine and theirs and old[mine[0]] != 1 and new[theirs[0]] == 1:
            groups.append(([], theirs))
            i -= 1
            continue
        a, b = math.prod(old[k] for k in mine), math.prod(new[k] for k in theirs)
        while a != b:
            if a < b:
                if i >= len(old):
                    return None
                a, mine, i = a * old[i], [*mine, i], i + 1
            else:
                if j >= len(new):
                    return None
                b, theirs, j = b * new[j], [*theirs, j], j + 1
        groups.append((mine, theirs))
    return groups


def sliced(weight: Weight, starts: Sequence[Any], sizes: Sequence[int]) -> Weight | None:
    """Slices a stack's layers, with a traced or static start; None for part of another axis."""
    if tuple(sizes) == weight.shape:  # of an axis of one, JAX 0.8 takes entry 0 like this
        return weight
    _, _, stack = weight.axes
    others = [k for k in range(len(sizes)) if k != stack]
    if stack is None or any(sizes[k] != weight.shape[k] for k in others):
        return None

    def run(x: Array, axis: int) -> Array:
        return lax.dynamic_slice_in_dim(x, starts[stack], sizes[stack], axis)

    return replace(
        weight,
        base=jax.tree.map(lambda x: run(x, stack), by_layer(weight).base),
        map=jax.tree.map(lambda x: run(x, 0), weight.map),
    )


def picked(weight: Weight, at: Array, **params: Any) -> Weight | None:
    """Gathers one or several layers of a stack; None for other lookups."""
    numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
    rows, cols, stack = weight.axes
    is_whole_layer = all(
        size == (1 if k == stack else weight.shape[k]) for k, size in enumerate(sizes)
    )
    is_by_layer = numbers.collapsed_slice_dims == numbers.start_index_map == (stack,)
    if stack is None or not is_whole_layer or not is_by_layer or at.ndim > 2:
        return None
    layers, which = weight.shape[stack], at[..., 0]
    is_inside = (which >= 0) & (which < layers)
    which = jnp.clip(which, 0, layers - 1)
    is_filled = params["mode"] == lax.GatherScatterMode.FILL_OR_DROP
    kept = [k for k in range(len(sizes)) if k != stack]
    n = len(kept) + which.ndim
    new = dict(zip(kept, numbers.offset_dims, strict=True))
    # The axis of several layers; a single layer has none.
    lead = next((k for k in range(n) if k not in numbers.offset_dims), None)

    def layer(x: Array) -> Array:
        x = jnp.take(x, which, stack)
        x = x if lead is None else jnp.moveaxis(x, stack, lead)
        if not is_filled or not jnp.issubdtype(x.dtype, jnp.floating):
            return x
        seen = [size if k == lead else 1 for k, size in enumerate(x.shape)]
        return jnp.where(is_inside.reshape(seen), x, jnp.asarray(jnp.nan, x.dtype))

    return replace(
        weight,
        base=jax.tree.map(layer, by_layer(weight).base),
        map=jax.tree.map(lambda x: x[which], weight.map),
        out=tuple(new[k] - n for k in rows),
        into=tuple(new[k] - n for k in cols),
        stack=None if lead is None else lead - n,
    )


def by_layer(weight: Weight) -> Weight:
    """A stack in which each array has one entry per layer.

    Several layers may share the scales of a quantized base.
    """
    _, _, stack = weight.axes
    if stack is None or not is_quantized(weight.base):
        return weight
    layers = weight.shape[stack]

    def repeated(x: Array) -> Array:
        return x if x.shape[stack] == layers else jnp.repeat(x, layers // x.shape[stack], stack)

    return replace(weight, base=jax.tree.map(repeated, weight.base))


def unstacked(weight: Weight) -> Weight | None:
    """A stack of one layer, without its axis."""
    _, _, stack = weight.axes
    if stack is None or weight.shape[stack] != 1:
        return None
    n = len(weight.shape)

    def lower(axis: int) -> int:
        return axis + 1 if axis < stack - n else axis

    return replace(
        weight,
        base=jax.tree.map(lambda x: x.squeeze(stack), weight.base),
        map=jax.tree.map(lambda x: x[0], weight.map),
        out=tuple(map(lower, weight.out)),
        into=tuple(map(lower, weight.into)),
        stack=None,
    )
