"""What a loop starts with, so that it also runs under `jax.shard_map`."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jaxtyping import Array

__all__ = ["carry"]


def carry(start: Array, *others: Any) -> Array:
    """Returns a loop's first carry, with the type that it has after an iteration.

    Under `jax.shard_map` the type of an array says along which axes of the mesh it varies. A carry
    to which arrays are added varies along their axes too, and must do so from the start.

    Args:
        start: The first carry.
        others: Pytrees of all arrays that an iteration adds to it.

    Example:
        >>> carry(jnp.zeros(2), jnp.ones(3)).tolist()
        [0.0, 0.0]
    """
    if AxisType.Manual not in jax.sharding.get_abstract_mesh().axis_types:
        return start
    for other in jax.tree.leaves(others):
        start = start + jnp.zeros_like(other, dtype=start.dtype, shape=())
    return start
