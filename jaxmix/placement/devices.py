"""The sharding of a leaf that a computation has to keep."""

from typing import Any

import jax
from jax.core import Tracer
from jax.sharding import AxisType, NamedSharding

__all__ = ["is_explicit", "sharding_of"]


def is_explicit(leaf: jax.Array) -> bool:
    """Returns whether an array's type contains its sharding.

    Args:
        leaf: An array.

    Returns:
        True if its mesh has explicit axes.
    """
    return AxisType.Explicit in jax.typeof(leaf).sharding.mesh.axis_types


def sharding_of(leaf: Any) -> NamedSharding | None:
    """Returns the sharding over a mesh with automatic axes that a leaf's result must have.

    Args:
        leaf: Any array.

    Returns:
        None if the leaf is on one device, is traced, or has its sharding in its type.
    """
    if isinstance(leaf, Tracer) or not isinstance(leaf, jax.Array):
        return None
    sharding = leaf.sharding
    if not isinstance(sharding, NamedSharding) or len(leaf.devices()) == 1:
        return None
    return None if is_explicit(leaf) else sharding
