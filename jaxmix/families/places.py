"""Positions in a weight that a family lists: whether they lie in it."""

import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Int

__all__ = ["beyond"]


def beyond(name: str, indices: Int[Array, "2 n"], shape: tuple[int, int]) -> str | None:
    """The words for positions that lie beyond a weight, or None where all lie in it.

    Args:
        name: what the positions are called.
        indices: rows and columns (2, n). Where they are traced nobody can say where they lie, and
            JAX drops those outside.
        shape: the weight's, (out, in).

    Returns:
        One line, or None.

    Example:
        >>> beyond("indices", np.array([[0, 6], [1, 8]]), (6, 9))
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
