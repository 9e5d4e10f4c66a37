"""Positions that a family lists, in a weight or elsewhere: whether they lie in it."""

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Int

__all__ = ["as_int32", "index_misfit", "order_misfit", "position_misfit"]


def position_misfit(name: str, indices: Int[Array, "2 n"], shape: tuple[int, int]) -> str | None:
    """The words for positions that are outside a weight, or None where all lie in it.

    Args:
        name: What the positions are called.
        indices: Rows and columns (2, n). Where they are traced nobody can say where they lie, and
            JAX drops those outside.
        shape: The weight's, (out, in).

    Returns:
        One line, or None.

    Example:
        >>> position_misfit("indices", np.array([[0, 6], [1, 8]]), (6, 9))
        'indices go to row 6 and column 8, expected rows below 6 and columns below 9'
    """
    if isinstance(indices, Tracer) or indices.size == 0:
        return None
    found = np.asarray(indices)
    low, (row, col) = found.min(), found.max(axis=1).tolist()
    if low < 0:
        return f"{name} go down to {low}, expected from 0 on"
    if row < shape[0] and col < shape[1]:
        return None
    return (
        f"{name} go to row {row} and column {col}, expected rows below {shape[0]} and columns "
        f"below {shape[1]}"
    )


def as_int32(positions: Int[Array, "..."]) -> Int[Array, "..."]:
    """Positions as int32, which whatever they meet has: a file may have them in other widths.

    Args:
        positions: whole numbers below 2³¹.

    Returns:
        The same.

    Example:
        >>> as_int32(np.array([200], np.uint8)) + 100
        Array([300], dtype=int32)
    """
    return jnp.asarray(positions).astype(np.int32)


def index_misfit(name: str, positions: Int[Array, "..."], size: int) -> str | None:
    """The words for numbers of things of which there are not so many, or None where all are there.

    Args:
        name: What the numbers are called.
        positions: The numbers, from 0 on. Where they are traced nobody can say what they are.
        size: How many things there are.

    Returns:
        One line, or None.

    Example:
        >>> index_misfit("indices", np.array([0, 6]), 6)
        'indices go from 0 to 6, expected from 0 on and below 6'
    """
    if isinstance(positions, Tracer) or positions.size == 0:
        return None
    found = np.asarray(positions)
    low, high = int(found.min()), int(found.max())
    if low >= 0 and high < size:
        return None
    return f"{name} go from {low} to {high}, expected from 0 on and below {size}"


def order_misfit(name: str, orders: Int[Array, "*many n"]) -> str | None:
    """The words for orders in which a place is twice, or is outside; None where each is there once.

    Args:
        name: What the orders are called.
        orders: The order, or orders, of n places. Where they are traced nobody can say.

    Returns:
        One line, or None.

    Example:
        >>> order_misfit("orders", np.array([[0, 1], [1, 1]]))
        'orders hold a number twice or beyond 1, expected each from 0 to 1 once'
    """
    if isinstance(orders, Tracer) or orders.size == 0:
        return None
    last = orders.shape[-1] - 1
    if (np.sort(np.asarray(orders), axis=-1) == np.arange(last + 1)).all():
        return None
    return f"{name} hold a number twice or beyond {last}, expected each from 0 to {last} once"
