"""Products with a weight to which Kronecker products are added while it is read.

A Kronecker product of tokens rearranges them between its two factors. To a weight it can be added
entry by entry, if the weight's rows are viewed as two axes (`operators.adding`). A TPU's compiler
does that inside the product, so that no dense weight is written. It does so only if the product
itself has these two axes: otherwise it writes the dense weight first.
"""

import math
from collections.abc import Sequence
from typing import Any

from jax import lax
from jaxtyping import Array, Float

from jaxmix.affine import AffineMap
from jaxmix.operators import Kronecker, Operator, terms
from jaxmix.operators.adding import added_in_view, common_rows
from jaxmix.operators.backends import TPU
from jaxmix.placement.devices import is_explicit
from jaxmix.placement.form import arithmetic
from jaxmix.placement.quantized import is_quantized
from jaxmix.unmerged.weight import Weight

__all__ = ["product_in_view", "rows_of_view"]


def rows_of_view(weight: Weight) -> int | None:
    """Returns how many rows of the leaf's first axis a view keeps together; None if it has no view.

    Args:
        weight: The leaf's base and Kronecker products.
    """
    is_plain = len(weight.shape) == 2 and not weight.is_stacked and not is_quantized(weight.base)
    if not is_plain or is_explicit(weight.base) or not weight.map.is_shift:
        return None

    def rows(step: AffineMap) -> int | None:
        delta = terms(_stored_delta(weight, step.shift))
        return common_rows(delta) if all(isinstance(term, Kronecker) for term in delta) else None

    return weight.count(rows)


def product_in_view(x: Array, weight: Weight, *, is_last: bool, **params: Any) -> Array:
    """Returns ``lax.dot_general`` of tokens and a leaf's ``W + Δ``, in the TPU's form.

    Args:
        x: The tokens.
        weight: The leaf's base and Kronecker products, with a view.
        is_last: Whether the weight is the product's right side.
        **params: The other parameters of the product, which has no batch axes.
    """
    delta, base = _stored_delta(weight, weight.map.shift), weight.plain()
    leaf = base.T if weight.is_transposed else base
    size = common_rows(terms(delta))
    assert size is not None
    total = added_in_view(TPU, leaf, delta, size, arithmetic(leaf.dtype)).astype(leaf.dtype)
    contracted, _ = params.pop("dimension_numbers")
    (x_axis,), (w_axis,) = contracted if is_last else contracted[::-1]
    if w_axis == (0 if weight.is_transposed else 1):
        y = _dot(x, total, (x_axis,), (2,), is_last=is_last, **params)
        # Otherwise XLA merges the axes before the product, or after it casts the result for a sum.
        merged = _merged(lax.optimization_barrier(y), x.ndim - 1 if is_last else 0)
        return lax.optimization_barrier(merged)
    split = _split(x, x_axis, size)
    return _dot(split, total, (x_axis, x_axis + 1), (0, 1), is_last=is_last, **params)


def _stored_delta(weight: Weight, delta: Operator) -> Operator:
    """Δ in the orientation in which the leaf is stored."""
    rows, _, _ = weight.axes
    return delta.T if (rows == (0,)) == weight.is_transposed else delta


def _dot(
    x: Array,
    w: Array,
    x_axes: Sequence[int],
    w_axes: Sequence[int],
    *,
    is_last: bool,
    **params: Any,
) -> Array:
    """The product that sums over these axes."""
    sides = ((x, x_axes), (w, w_axes))
    (lhs, left), (rhs, right) = sides if is_last else sides[::-1]
    return lax.dot_general(lhs, rhs, ((tuple(left), tuple(right)), ((), ())), **params)


def _split(x: Float[Array, "..."], axis: int, size: int) -> Float[Array, "..."]:
    """Splits an axis into two, the second of this size."""
    return x.reshape(*x.shape[:axis], x.shape[axis] // size, size, *x.shape[axis + 1 :])


def _merged(x: Float[Array, "..."], axis: int) -> Float[Array, "..."]:
    """Merges an axis with the next."""
    return x.reshape(*x.shape[:axis], math.prod(x.shape[axis : axis + 2]), *x.shape[axis + 2 :])
