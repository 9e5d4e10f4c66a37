"""Checks of the index arrays that some families hold."""

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Int

__all__ = ["as_int32", "index_misfit", "order_misfit", "position_misfit"]


def position_misfit(name: str, indices: Int[Array, "2 n"], shape: tuple[int, int]) -> str | None:
    """Describes positions that are outside a weight.

    Args:
        name: The name of the positions, for the message.
        indices: Rows and columns (2, n). Traced indices cannot be checked; JAX drops those outside.
        shape: The weight's shape (out, in).

    Returns:
        A message, or None if all positions are inside.

    Example:
        >>> position_misfit("indices", np.array([[0, 6], [1, 8]]), (6, 9))
        'indices reach row 6 and column 8, expected rows below 6 and columns below 9'
    """
    if isinstance(indices, Tracer) or indices.size == 0:
        return None
    found = np.asarray(indices)
    low, (row, col) = found.min(), found.max(axis=1).tolist()
    if low < 0:
        return f"{name} include {low}, expected 0 or more"
    if row < shape[0] and col < shape[1]:
        return None
    return (
        f"{name} reach row {row} and column {col}, expected rows below {shape[0]} and columns "
        f"below {shape[1]}"
    )


def as_int32(positions: Int[Array, "..."]) -> Int[Array, "..."]:
    """Converts indices to int32, the dtype used in arithmetic; files store them in other widths.

    Args:
        positions: Integers below 2³¹.

    Returns:
        The same integers.

    Example:
        >>> as_int32(np.array([200], np.uint8)) + 100
        Array([300], dtype=int32)
    """
    return jnp.asarray(positions).astype(np.int32)


def index_misfit(name: str, positions: Int[Array, "..."], size: int) -> str | None:
    """Describes indices that are out of range.

    Args:
        name: The name of the indices, for the message.
        positions: The indices. Traced indices cannot be checked.
        size: The length of the indexed axis.

    Returns:
        A message, or None if all indices are in range.

    Example:
        >>> index_misfit("indices", np.array([0, 6]), 6)
        'indices go from 0 to 6, expected from 0 to 5'
    """
    if isinstance(positions, Tracer) or positions.size == 0:
        return None
    found = np.asarray(positions)
    low, high = int(found.min()), int(found.max())
    if low >= 0 and high < size:
        return None
    return f"{name} go from {low} to {high}, expected from 0 to {size - 1}"


def order_misfit(name: str, orders: Int[Array, "*many n"]) -> str | None:
    """Describes arrays that are not permutations.

    Args:
        name: The name of the array, for the message.
        orders: One or more permutations of 0 … n − 1, along the last axis. Traced arrays cannot be
            checked.

    Returns:
        A message, or None if each is a permutation.

    Example:
        >>> order_misfit("orders", np.array([[0, 1], [1, 1]]))
        'orders repeat an index or exceed 1, expected each index from 0 to 1 once'
    """
    if isinstance(orders, Tracer) or orders.size == 0:
        return None
    last = orders.shape[-1] - 1
    if (np.sort(np.asarray(orders), axis=-1) == np.arange(last + 1)).all():
        return None
    return f"{name} repeat an index or exceed {last}, expected each index from 0 to {last} once"
