"""The operators under test: each name has a function that makes an operator and its matrix."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix import operators
from jaxmix.operators import (
    BlockDiagonal,
    Circulant,
    Dense,
    Diagonal,
    Hadamard,
    Identity,
    Kronecker,
    LowRank,
    Operator,
    Permutation,
    Product,
    Sparse,
    StackedLowRank,
    Sum,
    Tiles,
    Zero,
)

__all__ = [
    "CASES",
    "KINDS",
    "SHAPES",
    "SQUARE",
    "SQUARE_KINDS",
    "TALL",
    "TYPES",
    "WIDE",
    "Example",
    "cast",
    "close",
    "each",
    "example",
    "low_rank",
    "parts_of",
    "shapes_of",
]

Example = tuple[Operator, np.ndarray]
Maker = Callable[[np.random.Generator, int, int], Example]

SQUARE = (12, 12)
WIDE = (8, 12)
TALL = (12, 8)
SHAPES = (SQUARE, WIDE, TALL)


def _zero(rng: np.random.Generator, rows: int, cols: int) -> Example:
    return Zero(rows, cols), np.zeros((rows, cols))


def _identity(rng: np.random.Generator, rows: int, cols: int) -> Example:
    return Identity(rows), np.eye(rows)


def _diagonal(rng: np.random.Generator, rows: int, cols: int) -> Example:
    d = rng.normal(size=rows)
    return Diagonal(jnp.asarray(d)), np.diag(d)


def _blocks(size: int, shared: bool = False) -> Maker:
    def make(rng: np.random.Generator, rows: int, cols: int) -> Example:
        count = rows // size
        blocks = rng.normal(size=(count // 2 if shared else count, size, size))
        dense = np.zeros((rows, rows))
        for i in range(count):
            at = slice(i * size, (i + 1) * size)
            dense[at, at] = blocks[i % len(blocks)]
        return BlockDiagonal(jnp.asarray(blocks), count // len(blocks)), dense

    return make


def _permutation(rng: np.random.Generator, rows: int, cols: int) -> Example:
    order = rng.permutation(rows)
    return Permutation(jnp.asarray(order, jnp.int32)), np.eye(rows)[order]


def low_rank(rank: int) -> Maker:
    def make(rng: np.random.Generator, rows: int, cols: int) -> Example:
        b, a = rng.normal(size=(rows, rank)), rng.normal(size=(rank, cols))
        return LowRank(jnp.asarray(b), jnp.asarray(a)), b @ a

    return make


def _stacked(rng: np.random.Generator, rows: int, cols: int) -> Example:
    b, a = rng.normal(size=(rows, 2, 3)), rng.normal(size=(rows, 3, cols // 2))
    return StackedLowRank(jnp.asarray(b), jnp.asarray(a)), (b @ a).reshape(rows, cols)


def _hadamard(rng: np.random.Generator, rows: int, cols: int) -> Example:
    (left, first_dense), (right, second_dense) = (low_rank(r)(rng, rows, cols) for r in (2, 3))
    assert isinstance(left, LowRank) and isinstance(right, LowRank)
    return Hadamard(left, right), first_dense * second_dense


def _kronecker(rows_in: int, cols_in: int) -> Maker:
    def make(rng: np.random.Generator, rows: int, cols: int) -> Example:
        x, y = rng.normal(size=(rows_in, cols_in)), None
        y = rng.normal(size=(rows // rows_in, cols // cols_in))
        return Kronecker(jnp.asarray(x), jnp.asarray(y)), np.kron(x, y)

    return make


def _tiles(size: int) -> Maker:
    def make(rng: np.random.Generator, rows: int, cols: int) -> Example:
        m, n = rows // size, cols // 4
        b, a = rng.normal(size=(m, n, size, 2)), rng.normal(size=(m, n, 2, 4))
        return Tiles(jnp.asarray(b), jnp.asarray(a)), np.block(list(map(list, b @ a)))

    return make


def _circulant(size: int) -> Maker:
    def make(rng: np.random.Generator, rows: int, cols: int) -> Example:
        kernels = rng.normal(size=(rows // size, cols // size, size))
        rolled = [[np.stack([np.roll(k, p) for p in range(size)]) for k in r] for r in kernels]
        return Circulant(jnp.asarray(kernels)), np.block(rolled)

    return make


def _sparse(rng: np.random.Generator, rows: int, cols: int) -> Example:
    values = rng.normal(size=9)
    indices = np.stack([rng.integers(0, rows, 9), rng.integers(0, cols, 9)])
    indices[:, 3] = indices[:, 5]
    dense = np.zeros((rows, cols))
    np.add.at(dense, tuple(indices), values)
    positions = jnp.asarray(indices, jnp.int32)
    return Sparse(jnp.asarray(values), positions, rows, cols), dense


def _dense(rng: np.random.Generator, rows: int, cols: int) -> Example:
    matrix = rng.normal(size=(rows, cols))
    return Dense(jnp.asarray(matrix)), matrix


def _sum(rng: np.random.Generator, rows: int, cols: int) -> Example:
    (x, first_dense), (y, second_dense) = _hadamard(rng, rows, cols), _sparse(rng, rows, cols)
    return Sum((x, y)), first_dense + second_dense


def _product(first: Maker, second: Maker, inner: int | None = None) -> Maker:
    def make(rng: np.random.Generator, rows: int, cols: int) -> Example:
        n = rows if inner is None else inner
        (x, first_dense), (y, second_dense) = first(rng, rows, n), second(rng, n, cols)
        return Product(x, y), first_dense @ second_dense

    return make


SQUARE_KINDS: dict[str, Maker] = {
    "identity": _identity,
    "diagonal": _diagonal,
    "blocks": _blocks(3),
    "blocks_large": _blocks(6),
    "blocks_other": _blocks(4),
    "blocks_shared": _blocks(3, shared=True),
    "permutation": _permutation,
}
KINDS: dict[str, Maker] = {
    "zero": _zero,
    **SQUARE_KINDS,
    "low_rank": low_rank(2),
    "low_rank_other": low_rank(3),
    "hadamard": _hadamard,
    "stacked": _stacked,
    "kronecker": _kronecker(2, 4),
    "kronecker_other": _kronecker(4, 2),
    "tiles": _tiles(2),
    "tiles_other": _tiles(4),
    "circulant": _circulant(2),
    "circulant_other": _circulant(4),
    "sparse": _sparse,
    "dense": _dense,
    "sum": _sum,
    "product": _product(_blocks(4), _kronecker(2, 2)),
    "product_other": _product(_kronecker(2, 2), _sparse, inner=20),
}
# Every operator type has to be among the kinds: `test_every_type_is_tested` checks this.
TYPES = {getattr(operators, name) for name in operators.__all__ if name[0].isupper()} - {Operator}


def shapes_of(kind: str) -> tuple[tuple[int, int], ...]:
    """The shapes with which a kind is tested."""
    return (SQUARE,) if kind in SQUARE_KINDS else SHAPES


CASES = [(kind, shape) for kind in KINDS for shape in shapes_of(kind)]
each = pytest.mark.parametrize(("kind", "shape"), CASES, ids=lambda value: str(value))


def example(kind: str, shape: tuple[int, int], seed: int = 0) -> Example:
    """An operator and the matrix that it represents, in float64."""
    return KINDS[kind](np.random.default_rng([seed, *map(ord, kind)]), *shape)


def cast(op: Any, dtype: Any) -> Any:
    """The pytree with its floating-point leaves in another dtype."""
    floats = (jnp.float32, jnp.float64)
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if leaf.dtype in floats else leaf, op)


def close(actual: Any, expected: Any) -> None:
    """Checks that shapes are equal and values are equal up to rounding in float64."""
    assert actual.shape == expected.shape
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=1e-12, atol=1e-12)


def parts_of(op: Operator) -> set[type]:
    """The types of an operator and of all operators inside it."""
    inner = [getattr(op, f.name) for f in fields(op)]  # pyright: ignore[reportArgumentType]
    flat = [x for part in inner for x in (part if isinstance(part, tuple) else (part,))]
    return {type(op)}.union(*(parts_of(x) for x in flat if isinstance(x, Operator)))
