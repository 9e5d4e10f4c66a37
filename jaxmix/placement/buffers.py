"""The buffers of leaves: whether they are shared or deleted, and their byte order."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

__all__ = ["as_array", "buffer_of", "is_deleted"]


def as_array(leaf: Any) -> jax.Array:
    """Returns an array as a JAX array of the same dtype in native byte order.

    Example:
        >>> as_array(np.ones(2, ">f4")).dtype.name
        'float32'
    """
    if isinstance(leaf, jax.Array):
        return leaf
    is_native = np.asarray(leaf).dtype.isnative
    return jnp.asarray(leaf if is_native else leaf.astype(leaf.dtype.newbyteorder("=")))


def buffer_of(leaf: Any) -> Any:
    """Returns a key that is equal for leaves in the same buffer.

    Args:
        leaf: Any leaf of a tree.

    Returns:
        The buffer's address if it has one, otherwise the identity of the leaf.
    """
    if not isinstance(leaf, jax.Array) or isinstance(leaf, Tracer) or is_deleted(leaf):
        return id(leaf)
    try:
        return ("buffer", leaf.addressable_shards[0].data.unsafe_buffer_pointer())
    except (IndexError, NotImplementedError, RuntimeError):  # another process's, or no address
        return id(leaf)


def is_deleted(leaf: Any) -> bool:
    """Returns whether a leaf is an array whose buffer was donated or deleted."""
    return isinstance(leaf, jax.Array) and not isinstance(leaf, Tracer) and leaf.is_deleted()
