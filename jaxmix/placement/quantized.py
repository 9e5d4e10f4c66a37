"""Quantized bases: arrays of few bits with scales, qwix's `QArray`.

qwix is imported only where there is such an array, and then it is installed. A `QArray` has an
array's ``shape``, ``dtype``, ``transpose`` and ``astype``, and so may stand where a base does. A
factored leaf keeps it and reads it by `dequantized` in the program, at each use; `jaxmix.compose`
gives a dequantized leaf, and `requantized` makes it one of few bits again.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array

from jaxmix.errors import LayoutError, listing
from jaxmix.placement.names import leaf_names

__all__ = ["dequantized", "is_quantized", "requantized"]


def is_quantized(x: Any) -> bool:
    """Whether something is qwix's array of few bits with scales."""
    kind = type(x)
    return kind.__name__ == "QArray" and kind.__module__.split(".")[0] == "qwix"


def dequantized(x: Any) -> Any:
    """The array that a quantized one stands for; any other leaf as it is."""
    if not is_quantized(x):
        return x
    import qwix

    return qwix.dequantize(x)


def requantized(params: Any, like: Any) -> tuple[Any, dict[str, float | Array]]:
    """The params with those leaves quantized that are so in another tree, in the same way.

    `jaxmix.compose` dequantizes what it changes. This quantizes it again: to the same type, with
    scales for the same tiles, new ones by the largest number in each (qwix's ``absmax``).

    Args:
        params: the composed params.
        like: the base's, of the same structure but for its quantized leaves.

    Returns:
        ``(params, errors)``: the tree, and for each leaf that was quantized its relative error,
        ``‖W − Q(W)‖ / ‖W‖``, by name.

    Raises:
        LayoutError: if the trees differ.

    Example:
        >>> requantized({"proj.weight": jnp.ones((2, 2))}, {"proj.weight": jnp.ones((2, 2))})[1]
        {}

    Source: https://github.com/google/qwix, ``qwix/_src/core/qarray.py``.
    """
    paths, treedef = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_quantized)
    others, _ = jax.tree_util.tree_flatten_with_path(like, is_leaf=is_quantized)
    names, other_names = (leaf_names([path for path, _ in tree]) for tree in (paths, others))
    if odd := sorted(set(names) ^ set(other_names)):
        raise LayoutError(
            f"requantized: leaves that only one of the two trees has:{listing(odd)}\nGive the base "
            "from which the params were composed."
        )
    leaves, errors = [], {}
    for name, (_, leaf), (_, old) in zip(names, paths, others, strict=True):
        if is_quantized(old) and not is_quantized(leaf):
            new = _like(leaf, old)
            errors[name] = _error(leaf, dequantized(new))
            leaf = new
        leaves.append(leaf)
    return treedef.unflatten(leaves), errors


def _like(leaf: Array, old: Any) -> Any:
    """An array quantized as another is: its type, and its scales' tiles."""
    import qwix

    tiles = {
        axis: size // count
        for axis, (size, count) in enumerate(zip(old.shape, old.scale.shape, strict=True))
        if count > 1
    }
    symmetric = old.zero_point is None
    return qwix.quantize(
        leaf,
        old.qtype,
        tiled_axes=tiles,
        calibration_method="absmax" if symmetric else "minmax",
        scale_dtype=old.scale.dtype,
    )


def _error(leaf: Array, new: Array) -> float | Array:
    """``‖W − Q(W)‖ / ‖W‖``; 0 for a leaf of zeros."""
    wide = jnp.promote_types(leaf.dtype, jnp.float32)
    norm = jnp.linalg.norm(leaf.astype(wide))
    off = jnp.linalg.norm(leaf.astype(wide) - new.astype(wide))
    error = jnp.where(norm > 0, off / jnp.where(norm > 0, norm, 1), 0)
    return error if isinstance(error, Tracer) else float(error)
