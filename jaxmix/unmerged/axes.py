"""The axes of a leaf that are rows, columns and layers, and the order of its rows."""

import math
from dataclasses import replace

import jax.numpy as jnp
import numpy as np

from jaxmix.affine import AffineMap
from jaxmix.operators import Diagonal, Identity, Operator, multiply
from jaxmix.operators.permutation import Permutation
from jaxmix.placement.form import Form
from jaxmix.placement.place import spelled

__all__ = ["Sides", "axes_of", "in_leaf", "layer_of"]

# The axes of a leaf that are rows, those that are columns, and that of layers.
Sides = tuple[tuple[int, ...], tuple[int, ...], int | None]


def axes_of(form: Form, n: int) -> Sides | None:
    """Returns the axes of a leaf that are a site's rows, columns and layers.

    Args:
        form: How the leaf holds the site's tensor.
        n: The number of axes of the leaf.

    Returns:
        Rows, columns, and the axis that the site is one entry of, or None, each counted from the
        end. None if an axis of the leaf is both rows and columns, or two axes have a number.

    Example:
        >>> from jaxmix.placement.place import Place
        >>> axes_of(Form("weight", Place("", "d n (h two) -> (n two h) d", ":, 3")), 4)
        ((-2, -1), (-4,), -3)
    """
    kept = list(range(n))
    layer = None
    if form.index is not None:
        numbers = [k for k, part in enumerate(form.index.split(",")) if ":" not in part]
        if len(numbers) > 1:
            return None
        if numbers:
            layer = numbers[0]
            kept.remove(layer)
    if form.transposed:
        rows, cols = kept[1:2], kept[:1]
    elif form.axes is None:
        rows, cols = kept[:1], kept[1:]
    else:
        parsed = _sides(form.axes, len(kept))
        if parsed is None:
            return None
        rows, cols = ([kept[k] for k in side] for side in parsed)
    lower = tuple(k - n for k in rows), tuple(k - n for k in cols)
    return *lower, None if layer is None else layer - n


def in_leaf(matrix_map: AffineMap, form: Form, leaf_shape: tuple[int, ...]) -> AffineMap:
    """Returns the map of a site's matrix in terms of the leaf's own rows and columns.

    A leaf that holds ``c P W Qᵀ`` has the map ``(P L Pᵀ, Q R Qᵀ, c P Δ Qᵀ)``.

    Args:
        matrix_map: The map of W (out, in).
        form: How the leaf holds W.
        leaf_shape: The leaf's shape.

    Returns:
        The map of the leaf's matrix, with axes in the order of `axes_of`.
    """
    matrix_map = form.scaled(matrix_map)
    if form.axes is None or "(" not in form.axes.split("->")[0]:
        return matrix_map
    rows, cols = _orders(form, leaf_shape)
    shift = matrix_map.shift
    shift = shift if rows is None else multiply(Permutation(rows), shift)
    shift = shift if cols is None else multiply(shift, Permutation(cols).T)
    return AffineMap(_reordered(matrix_map.left, rows), _reordered(matrix_map.right, cols), shift)


def layer_of(form: Form, axis: int, shape: tuple[int, ...]) -> int:
    """Returns the layer of a stack that a form's index selects.

    Args:
        form: The form, with an index.
        axis: The stack's axis, counted from the end.
        shape: The leaf's shape.

    Returns:
        The layer's number, counted from the start.
    """
    assert form.index is not None
    return int(form.index.split(",")[axis + len(shape)]) % shape[axis]


def _sides(axes: str, n: int) -> tuple[list[int], list[int]] | None:
    """The axes of rows and columns in a pattern, in the order of its right side."""
    here, there = (spelled(side, n) for side in axes.split("->"))
    rows, *cols = there
    sides: list[list[int]] = []
    for names in (rows, [name for group in cols for name in group]):
        axes_here = [k for name in names for k, group in enumerate(here) if name in group]
        sides.append(list(dict.fromkeys(axes_here)))
    if set(sides[0]) & set(sides[1]):
        return None
    ones = [k for k, group in enumerate(here) if not group]
    return [*sides[0], *ones], sides[1]


def _orders(form: Form, leaf_shape: tuple[int, ...]) -> tuple[jnp.ndarray | None, ...]:
    """PyTorch's index of each row and column of a leaf; None for the same order."""
    assert form.axes is not None
    place = form.place
    part = place.part_shape(leaf_shape)
    sizes = place.axis_sizes(part)
    here, there = (spelled(side, len(part)) for side in form.axes.split("->"))
    sides = _sides(form.axes, len(part))
    assert sides is not None
    orders: list[jnp.ndarray | None] = []
    for names, axes in zip(
        (there[0], [name for group in there[1:] for name in group]), sides, strict=True
    ):
        present = [name for k in axes for name in here[k]]
        grid = np.arange(math.prod(sizes[name] for name in names))
        grid = grid.reshape([sizes[name] for name in names])
        order = grid.transpose([names.index(name) for name in present]).reshape(-1)
        orders.append(None if present == names else jnp.asarray(order))
    return tuple(orders)


def _reordered(side: Operator, order: jnp.ndarray | None) -> Operator:
    """``P M Pᵀ``."""
    if order is None or isinstance(side, Identity):
        return side
    if isinstance(side, Diagonal):
        return replace(side, d=side.d[order])
    return multiply(multiply(Permutation(order), side), Permutation(order).T)
