"""Products with a matrix that lies over several devices."""

import math

import jax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from jaxmix.operators.base import Operator
from jaxmix.operators.blocks import BlockDiagonal
from jaxmix.operators.compound import Product, Sum
from jaxmix.operators.lowrank import LowRank
from jaxmix.operators.simple import Diagonal, Identity, Zero

__all__ = ["as_matrix", "flipped", "stays", "times"]


def as_matrix(sharding: NamedSharding | None, shape: tuple[int, ...]) -> NamedSharding | None:
    """How a tensor lies once all its axes but the first are one.

    Args:
        sharding: How the tensor lies; None where nobody knows.
        shape: The tensor's shape.

    Returns:
        The matrix's sharding, with an entry for each axis; None where no sharding says it.

    Example:
        >>> mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
        >>> lies = as_matrix(NamedSharding(mesh, PartitionSpec("x")), (4, 2, 3))
        >>> lies.spec == PartitionSpec("x", None)
        True
    """
    if sharding is None or len(shape) < 2:
        return None
    rows, cols, *rest = (*sharding.spec, *[None] * (len(shape) - len(sharding.spec)))
    if any(axes is not None for axes in rest):
        return None
    return NamedSharding(sharding.mesh, PartitionSpec(rows, cols))


def flipped(lies: NamedSharding | None) -> NamedSharding | None:
    """How the transpose of a matrix lies."""
    return lies and NamedSharding(lies.mesh, PartitionSpec(*reversed(lies.spec)))


def stays(m: Operator, parts: int) -> bool:
    """Whether ``M x`` takes no more than sums of few numbers, where x's rows lie in equal parts.

    Args:
        m: A matrix (n, n).
        parts: How many parts there are.

    Returns:
        Whether each part of the rows turns within itself, but for a low rank.

    Example:
        >>> import jax.numpy as jnp
        >>> blocks = BlockDiagonal(jnp.ones((2, 3, 3)), 1)
        >>> stays(blocks, 2), stays(blocks, 3)
        (True, False)
    """
    if parts == 1:
        return True
    match m:
        case Identity() | Diagonal() | LowRank() | Zero():
            return True
        case BlockDiagonal():
            return (m.blocks.shape[0] if m.copies == 1 else m.copies) % parts == 0
        case Sum():
            return all(stays(term, parts) for term in m.terms)
        case Product():
            return stays(m.first, parts) and stays(m.second, parts)
        case _:
            return False


def times(m: Operator, x: Float[Array, "n k"], lies: NamedSharding | None) -> Float[Array, "n k"]:
    """``M x`` for an x that lies over devices, as far as possible where it lies.

    A rotation that goes across the parts of x needs numbers from all of them. Then x is laid out by
    columns alone, turned, and laid back: two exchanges, in which each device gives and gets its own
    part once, and none ever holds more than its part. Left to itself XLA gathers whole columns.

    Args:
        m: A matrix (n, n).
        x: Another (n, k), in a traced function.
        lies: How x lies; None where nobody knows, or on one device: then XLA decides.

    Returns:
        The product, which lies as x does.
    """
    if lies is None:
        return m @ x
    (rows, over_rows), (cols, over_cols) = (_axes(lies, k) for k in range(2))
    if stays(m, over_rows) or x.shape[1] % (over_rows * over_cols):
        return m @ x
    by_columns = NamedSharding(lies.mesh, PartitionSpec(None, (*cols, *rows)))
    turned = m @ jax.lax.with_sharding_constraint(x, by_columns)
    turned = jax.lax.with_sharding_constraint(turned, by_columns)
    return jax.lax.with_sharding_constraint(turned, lies)


def _axes(lies: NamedSharding, k: int) -> tuple[tuple[str, ...], int]:
    """The mesh's axes over which an axis of a matrix lies, and how many parts that makes."""
    found = lies.spec[k]
    names = found if isinstance(found, tuple) else () if found is None else (found,)
    return names, math.prod(lies.mesh.shape[name] for name in names)
