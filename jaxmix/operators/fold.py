"""Addition and multiplication of operators, folded into one operator where structures allow it."""

import jax.numpy as jnp

from jaxmix.errors import ShapeError
from jaxmix.operators.base import Operator
from jaxmix.operators.blocks import BlockDiagonal, Kronecker
from jaxmix.operators.compound import Product, Sum, terms
from jaxmix.operators.lowrank import Hadamard, LowRank
from jaxmix.operators.permutation import Permutation
from jaxmix.operators.simple import Dense, Diagonal, Identity, Zero
from jaxmix.operators.sparse import Sparse

__all__ = ["add", "multiply"]


def add(x: Operator, y: Operator) -> Operator:
    """Returns ``x + y``, folded: zeros vanish, low ranks are concatenated, equal structures merge.

    Args:
        x: A matrix (rows, cols).
        y: Another matrix of the same shape.

    Returns:
        One operator, or a `Sum` with at most one term of each structure that merges.

    Raises:
        ShapeError: If the shapes differ.

    Example:
        >>> x = LowRank(jnp.ones((2, 1)), jnp.ones((1, 3)))
        >>> both = add(x, x)
        >>> type(both).__name__, both.rank
        ('LowRank', 2)
    """
    if x.shape != y.shape:
        raise ShapeError(
            f"add: the matrices have shapes {x.shape} and {y.shape}, expected equal shapes. Do "
            "both updates belong to the same weight?"
        )
    if isinstance(x, Zero):
        return y
    if isinstance(y, Zero):
        return x
    summands = list(terms(x))
    for new in terms(y):
        for i, old in enumerate(summands):
            if (merged := _merge(old, new)) is not None:
                summands[i] = merged
                break
        else:
            summands.append(new)
    return summands[0] if len(summands) == 1 else Sum(tuple(summands))


def _merge(x: Operator, y: Operator) -> Operator | None:
    """Returns ``x + y`` as one operator of their common structure, or None."""
    match x, y:
        case LowRank(), LowRank():
            return LowRank(jnp.concatenate([x.b, y.b], 1), jnp.concatenate([x.a, y.a], 0))
        case Sparse(), Sparse():
            values = jnp.concatenate([x.values, y.values])
            return Sparse(values, jnp.concatenate([x.indices, y.indices], 1), *x.shape)
        case Dense(), Dense():
            return Dense(x.matrix + y.matrix)
        case ((Diagonal() | Identity()), (Diagonal() | Identity())):
            return Diagonal(_diagonal(x).d + _diagonal(y).d)
        case BlockDiagonal(), BlockDiagonal() if x.blocks.shape == y.blocks.shape:
            return BlockDiagonal(x.blocks + y.blocks, x.copies)
        case _:
            return None


def _diagonal(x: Diagonal | Identity) -> Diagonal:
    return x if isinstance(x, Diagonal) else x.scaled(1.0)


def multiply(x: Operator, y: Operator) -> Operator:
    """Returns ``x y``, folded: identities vanish, low rank is kept, equal structures merge.

    Args:
        x: A matrix (rows, n).
        y: A matrix (n, cols).

    Returns:
        One operator, which is a `Product` if the structures do not merge.

    Raises:
        ShapeError: If the inner sizes differ.

    Example:
        >>> x = LowRank(jnp.ones((2, 1)), jnp.ones((1, 3)))
        >>> multiply(Diagonal(jnp.array([2.0, 3.0])), x).b.tolist()
        [[2.0], [3.0]]
    """
    if x.shape[1] != y.shape[0]:
        raise ShapeError(
            f"multiply: the matrices have shapes {x.shape} and {y.shape}, expected equal inner "
            "sizes. Do both updates belong to the same weight?"
        )
    if isinstance(x, Identity):
        return y
    if isinstance(y, Identity):
        return x
    if isinstance(x, Zero) or isinstance(y, Zero):
        return Zero(x.shape[0], y.shape[1])
    match x, y:
        case LowRank(), LowRank() if y.rank < x.rank:
            return LowRank(x @ y.b, y.a)
        case LowRank(), _:
            return LowRank(x.b, x.a @ y)
        case _, LowRank():
            return LowRank(x @ y.b, y.a)
        case Dense(), _:
            return Dense(x.matrix @ y)
        case _, Dense():
            return Dense(x @ y.matrix)
        case Diagonal(), _:
            return _multiply_diagonal(x, y)
        case _, Diagonal():
            return _multiply_diagonal(y, x.T).T
        case BlockDiagonal(), BlockDiagonal():
            return _multiply_blocks(x, y)
        case Permutation(), Permutation():
            return Permutation(y.order[x.order])
        case Kronecker(), Kronecker() if x.x.shape[1] == y.x.shape[0]:
            return Kronecker(x.x @ y.x, x.y @ y.y)
        case _:
            return Product(x, y)


def _multiply_diagonal(x: Diagonal, y: Operator) -> Operator:
    """Returns ``diag(d) y``."""
    match y:
        case Diagonal():
            return Diagonal(x.d * y.d, x.gates or y.gates)
        case Hadamard():
            return Hadamard(LowRank(x @ y.left.b, y.left.a), y.right)
        case Sparse():
            return Sparse(x.d[y.indices[0]] * y.values, y.indices, *y.shape)
        case BlockDiagonal():
            return BlockDiagonal(x.d.reshape(-1, y.block_size, 1) * y.all_blocks(), 1)
        case _:
            return Product(x, y)


def _multiply_blocks(x: BlockDiagonal, y: BlockDiagonal) -> Operator:
    """Multiplies two block-diagonal matrices; merges them if one block size divides the other."""
    small, large = sorted((x.block_size, y.block_size))
    if large % small:
        return Product(x, y)
    x, y = x.coarse(large), y.coarse(large)
    if x.blocks.shape == y.blocks.shape:
        return BlockDiagonal(x.blocks @ y.blocks, x.copies)
    return BlockDiagonal(x.all_blocks() @ y.all_blocks(), 1)
