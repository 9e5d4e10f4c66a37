"""Quantized bases: qwix's `QArray`, an array of few bits with scales.

qwix is imported only if there is such an array, and then it is installed. A `QArray` has an array's
``shape``, ``dtype``, ``transpose`` and ``astype``, so it can be a base's leaf. A factored leaf
keeps it and dequantizes it in the program at each use; `jaxmix.compose` returns a dequantized
leaf, which `requantized` quantizes again.
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
    """Returns whether a leaf is qwix's `QArray`."""
    kind = type(x)
    return kind.__name__ == "QArray" and kind.__module__.split(".")[0] == "qwix"


def dequantized(x: Any) -> Any:
    """Returns the dequantized array of a `QArray`; any other leaf unchanged."""
    if not is_quantized(x):
        return x
    import qwix

    return qwix.dequantize(x)


def requantized(params: Any, like: Any) -> tuple[Any, dict[str, float | Array]]:
    """Quantizes the leaves of a tree that are quantized in another tree, in the same way.

    `jaxmix.compose` dequantizes the leaves that it changes. This function quantizes them again, to
    the same type and with scales of the same tiles, computed from the largest number in each tile
    (qwix's ``absmax``).

    Args:
        params: The composed params.
        like: The base's params, of the same structure except for quantized leaves.

    Returns:
        ``(params, errors)``: the tree, and the relative error of each quantized leaf by name,
        ``‖W − Q(W)‖ / ‖W‖``.

    Raises:
        LayoutError: If the trees differ.

    Example:
        >>> requantized({"proj.weight": jnp.ones((2, 2))}, {"proj.weight": jnp.ones((2, 2))})[1]
        {}

    Source: https://github.com/google/qwix, ``qwix/_src/core/qarray.py``.
    """
    paths, treedef = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_quantized)
    others, _ = jax.tree_util.tree_flatten_with_path(like, is_leaf=is_quantized)
    names, other_names = (leaf_names([path for path, _ in tree]) for tree in (paths, others))
    if unmatched := sorted(set(names) ^ set(other_names)):
        raise LayoutError(
            f"requantized: leaves that only one of the two trees has:{listing(unmatched)}\nPass "
            "the base from which the params were composed."
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
    """Quantizes an array like another one: the same type and the same tiles of scales."""
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
    difference = jnp.linalg.norm(leaf.astype(wide) - new.astype(wide))
    error = jnp.where(norm > 0, difference / jnp.where(norm > 0, norm, 1), 0)
    return error if isinstance(error, Tracer) else float(error)
