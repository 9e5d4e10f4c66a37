"""Refuses arguments that can't be a tree of weights."""

from os import PathLike
from typing import Any

import jax

from jaxmix.errors import LayoutError
from jaxmix.placement.quantized import is_quantized

__all__ = ["check_no_path", "check_tree"]

_PARAMS = (
    "expected a pytree of weights: a dict of arrays, an nnx.Module or its state, an Equinox module."
)


def check_no_path(params: Any) -> None:
    """Refuses a path where a tree of weights is expected.

    Args:
        params: The argument of the caller.

    Raises:
        LayoutError: If it is a path.
    """
    if isinstance(params, str | bytes | PathLike):
        raise LayoutError(
            f"the params are the path {params!r}, {_PARAMS} Read a checkpoint with "
            "jaxmix.models.read_tensors(folder), or merge it on disk with "
            "jaxmix.merge_checkpoint(folder, adapters, out)."
        )


def check_tree(params: Any) -> None:
    """Refuses arguments that can't be a tree of weights: a path, None, a function.

    Args:
        params: The argument of the caller.

    Raises:
        LayoutError: If it is one of these.
    """
    check_no_path(params)
    is_leaf = jax.tree_util.all_leaves([params], is_leaf=is_quantized)
    if params is None or (is_leaf and not hasattr(params, "shape")):
        text = " ".join(repr(params).split())
        raise LayoutError(f"the params are {text[:80]}, {_PARAMS} Pass the model's weights.")
