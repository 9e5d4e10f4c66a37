"""Convolutions with, and lookups in, a weight that keeps base and map separate."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jaxmix.apply.plan import arithmetic, cast
from jaxmix.operators import Diagonal, Hadamard, Identity, LowRank, Operator, Zero, add, terms
from jaxmix.unmerged.costs import choose, of_dense, of_operators
from jaxmix.unmerged.products import precise
from jaxmix.unmerged.weight import Weight

__all__ = ["conv", "gather", "sum_as_low_rank"]


def conv(x: Array, weight: Weight, **params: Any) -> Array | None:
    """``lax.conv_general_dilated``: Δ = BA is a convolution with A, then a pointwise one.

    Returns:
        The result; None without a factored form.
    """
    x = jnp.asarray(x)
    spec, rows, cols = params["dimension_numbers"], *weight.axes[:2]
    low = sum_as_low_rank(weight.map.shift) if not weight.is_stacked else None
    as_it_lies = rows == spec.rhs_spec[:1] and cols == spec.rhs_spec[1:]
    if low is None or not as_it_lies or not isinstance(weight.map.right, Identity):
        return None
    if params["batch_group_count"] != 1:
        return None
    points = x.size // x.shape[spec.lhs_spec[1]]
    thin = replace(weight, map=replace(weight.map, shift=low))

    def by_operators(x: Array, weight: Weight) -> Array:
        return _by_operators(x, weight, params)

    def by_dense(x: Array, weight: Weight) -> Array:
        return lax.conv_general_dilated(x, weight.dense(), **_keywords(params))

    form = of_operators(thin, points, False), by_operators
    return choose(weight, form, [(of_dense(weight), by_dense)], x, weight)


def _by_operators(x: Array, weight: Weight, params: dict[str, Any]) -> Array:
    """The convolution with the base, and Δ's."""
    channels = params["dimension_numbers"].out_spec[1]
    low = sum_as_low_rank(weight.map.shift)
    y = lax.conv_general_dilated(x, weight.plain(), **_keywords(params))
    dtype = arithmetic(x.dtype)
    cast_map = cast(weight.map, dtype)
    with precise(params["precision"]):
        moved = jnp.moveaxis(y, channels, -1).astype(dtype)
        if not isinstance(cast_map.left, Identity):
            flat = moved.reshape(-1, moved.shape[-1]) @ cast_map.left.T
            moved = flat.reshape(moved.shape)
        if not isinstance(low, Zero):
            moved = moved + _thin(x.astype(dtype), cast(low, dtype), weight, params)
    return jnp.moveaxis(moved, -1, channels).astype(y.dtype)


def _thin(x: Array, low: Any, weight: Weight, params: dict[str, Any]) -> Array:
    """``x`` convolved with Δ, channels last. Each group has all of A and its own rows of B."""
    spec, groups, rank = params["dimension_numbers"], params["feature_group_count"], low.rank
    shape = [weight.shape[axis] for axis in spec.rhs_spec]
    a = jnp.tile(low.a.reshape(rank, *shape[1:]), (groups, *[1] * (len(shape) - 1)))
    a = a.transpose([spec.rhs_spec.index(k) for k in range(len(shape))])
    inner = lax.conv_general_dilated(
        x, a, **{**_keywords(params), "preferred_element_type": x.dtype}
    )
    inner = jnp.moveaxis(inner, spec.out_spec[1], -1)
    inner = inner.reshape(*inner.shape[:-1], groups, rank)
    b = low.b.reshape(groups, -1, rank)
    return jnp.einsum("...gr,gor->...go", inner, b).reshape(*inner.shape[:-2], -1)


def _keywords(params: dict[str, Any]) -> dict[str, Any]:
    """The primitive's parameters as arguments of the function."""
    names = (
        *("window_strides", "padding", "lhs_dilation", "rhs_dilation", "dimension_numbers"),
        *("feature_group_count", "batch_group_count", "precision", "preferred_element_type"),
    )
    return {name: params[name] for name in names}


def sum_as_low_rank(delta: Operator) -> LowRank | Zero | None:
    """Δ as one low rank, or as zero; None if it is neither."""
    total: Operator = Zero(*delta.shape)
    for term in terms(delta):
        if isinstance(term, Hadamard):
            term = term.low_rank()
        total = add(total, term)
    return total if isinstance(total, LowRank | Zero) else None


def gather(weight: Weight, at: Array, **params: Any) -> Array | None:
    """Rows of an embedding: ``(W₀[at] Rᵀ) · L[at] + Δ[at]``, for ``lax.gather``.

    Returns:
        The rows; None without a factored form.
    """
    at = jnp.asarray(at)
    numbers = params["dimension_numbers"]
    rows, cols, stack = weight.axes
    axis = numbers.collapsed_slice_dims
    is_whole_row = all(
        n == (1 if k in axis else weight.shape[k]) for k, n in enumerate(params["slice_sizes"])
    )
    is_transposed = axis == cols and axis != rows
    if (
        not is_whole_row
        or axis not in (rows, cols)
        or numbers.start_index_map != axis
        or stack is not None
    ):
        return None
    if numbers.operand_batching_dims or weight.how == "dense":
        return None
    row_map = weight.map_to(is_transposed)
    if not isinstance(row_map.left, Identity | Diagonal):
        return None
    y = jax.lax.gather(
        weight.plain(),
        at,
        dimension_numbers=numbers,
        slice_sizes=params["slice_sizes"],
        unique_indices=params["unique_indices"],
        indices_are_sorted=params["indices_are_sorted"],
        mode=params["mode"],
        fill_value=params["fill_value"],
    )
    dtype = arithmetic(y.dtype)
    row_map = cast(row_map, dtype)
    # The rows' own axes come last, in the matrix's order.
    kept = [k for k in range(len(weight.shape)) if k not in axis]
    offsets = [numbers.offset_dims[kept.index(k)] for k in (rows if is_transposed else cols)]
    order = [*(k for k in range(y.ndim) if k not in numbers.offset_dims), *offsets]
    moved = y.transpose(order)
    size = weight.shape[axis[0]]
    which = jnp.clip(at[..., 0], 0, size - 1).reshape(-1)
    flat = moved.reshape(which.shape[0], -1).astype(dtype)
    if not isinstance(row_map.right, Identity):
        flat = flat @ row_map.right.T
    if isinstance(row_map.left, Diagonal):
        flat = flat * row_map.left.d[which][:, None]
    if not isinstance(row_map.shift, Zero):
        flat = flat + row_map.shift.take_rows(which)
    back = sorted(range(y.ndim), key=order.__getitem__)
    return flat.reshape(moved.shape).transpose(back).astype(y.dtype)
