"""Products with a matrix that is sharded over several devices."""

import math

import jax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from jaxmix.operators.base import Operator
from jaxmix.operators.blocks import BlockDiagonal
from jaxmix.operators.compound import Product, Sum
from jaxmix.operators.lowrank import LowRank
from jaxmix.operators.simple import Diagonal, Identity, Zero

__all__ = [
    "is_local",
    "matrix_sharding",
    "sharded_matmul",
    "sharded_product",
    "transposed_sharding",
]


def matrix_sharding(sharding: NamedSharding | None, shape: tuple[int, ...]) -> NamedSharding | None:
    """Returns the sharding of a tensor after all its axes but the first are flattened into one.

    Args:
        sharding: The tensor's sharding; None if unknown.
        shape: The tensor's shape.

    Returns:
        The matrix's sharding, with an entry for each axis; None if unknown or if no sharding
        describes it.

    Example:
        >>> mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
        >>> found = matrix_sharding(NamedSharding(mesh, PartitionSpec("x")), (4, 2, 3))
        >>> found.spec == PartitionSpec("x", None)
        True
    """
    if sharding is None or len(shape) < 2:
        return None
    rows, cols, *rest = (*sharding.spec, *[None] * (len(shape) - len(sharding.spec)))
    if any(axes is not None for axes in rest):
        return None
    return NamedSharding(sharding.mesh, PartitionSpec(rows, cols))


def transposed_sharding(sharding: NamedSharding | None) -> NamedSharding | None:
    """Returns the sharding of the transpose of a matrix."""
    return sharding and NamedSharding(sharding.mesh, PartitionSpec(*reversed(sharding.spec)))


def is_local(m: Operator, parts: int) -> bool:
    """Whether ``M x`` needs little communication if the rows of x are sharded in equal parts.

    Args:
        m: A matrix (n, n).
        parts: The number of parts.

    Returns:
        Whether each part of the result depends on the same part of x only, apart from low-rank
        terms, which need small sums over all parts.

    Example:
        >>> import jax.numpy as jnp
        >>> blocks = BlockDiagonal(jnp.ones((2, 3, 3)), 1)
        >>> is_local(blocks, 2), is_local(blocks, 3)
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
            return all(is_local(term, parts) for term in m.terms)
        case Product():
            return is_local(m.first, parts) and is_local(m.second, parts)
        case _:
            return False


def sharded_matmul(
    m: Operator, x: Float[Array, "n k"], sharding: NamedSharding | None
) -> Float[Array, "n k"]:
    """Returns ``M x`` for a sharded x and keeps the communication small.

    A rotation that mixes rows of different devices needs values from all of them. In that case x is
    resharded by columns, rotated, and resharded back. In each of the two exchanges every device
    sends and receives its own part once, and no device holds more than its part. By itself, XLA
    would gather whole columns.

    Args:
        m: A matrix (n, n).
        x: A matrix (n, k), in a traced function.
        sharding: The sharding of x; None if unknown or on one device, which leaves it to XLA.

    Returns:
        The product, sharded as x.
    """
    if sharding is None:
        return m @ x
    (rows, over_rows), (cols, over_cols) = (_mesh_axes(sharding, k) for k in range(2))
    if is_local(m, over_rows) or x.shape[1] % (over_rows * over_cols):
        return m @ x
    by_columns = NamedSharding(sharding.mesh, PartitionSpec(None, (*cols, *rows)))
    product = m @ jax.lax.with_sharding_constraint(x, by_columns)
    product = jax.lax.with_sharding_constraint(product, by_columns)
    return jax.lax.with_sharding_constraint(product, sharding)


def sharded_product(
    left: Operator, x: Float[Array, "n k"], right: Operator, sharding: NamedSharding | None
) -> Float[Array, "n k"]:
    """Returns ``L x Rᵀ`` for a sharded x, with the communication of `sharded_matmul`.

    Args:
        left: L (n, n).
        x: A matrix (n, k), in a traced function.
        right: R (k, k).
        sharding: The sharding of x; None if unknown or on one device.

    Returns:
        The product, sharded as x.
    """
    x = sharded_matmul(left, x, sharding)
    if isinstance(right, Identity):
        return x
    # Blocks read a transposed x in an order in which XLA's CPU compiler is slower.
    if sharding is None:
        return x @ right.T
    return sharded_matmul(right, x.T, transposed_sharding(sharding)).T


def _mesh_axes(sharding: NamedSharding, k: int) -> tuple[tuple[str, ...], int]:
    """Returns the mesh axes that shard axis k of a matrix, and into how many parts."""
    axes = sharding.spec[k]
    names = axes if isinstance(axes, tuple) else () if axes is None else (axes,)
    return names, math.prod(sharding.mesh.shape[name] for name in names)
