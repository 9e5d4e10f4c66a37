"""Single operators: their matrices, products and costs."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix.operators import (
    Operator,
)

from .kinds import KINDS, SQUARE, TYPES, WIDE, close, each, example


def test_every_type_is_tested() -> None:
    assert {type(example(kind, SQUARE)[0]) for kind in KINDS} == TYPES


@pytest.mark.usefixtures("no_compiling")
@pytest.mark.one_of(2)
@each
def test_alone(kind: str, shape: tuple[int, int]) -> None:
    """Dense, transposed, multiplied, scaled and added."""
    op, matrix = example(kind, shape)
    rng = np.random.default_rng(1)
    w, factor = rng.normal(size=shape), jnp.asarray(2.5)
    rows = [0, shape[0] - 1, 3, 3]
    vectors = [[rng.normal(size=(size, n)) for n in (1, 5, 40)] for size in reversed(shape)]

    def compute(op: Operator, factor: jax.Array) -> list[jax.Array]:
        products = [
            x @ jnp.asarray(v) for x, vs in zip((op, op.T), vectors, strict=True) for v in vs
        ]
        return [
            op.dense(),
            op.T.dense(),
            op.T.T.dense(),
            op.scaled(factor).dense(),
            op.scaled(-1.5).dense(),
            op.T.scaled(factor) @ jnp.asarray(w),
            op.added_to(jnp.asarray(w)),
            op.product_added_to(jnp.asarray(w[:2]), jnp.asarray(vectors[1][1].T[:2])),
            *products,
            *(v.T @ op.T for v in map(jnp.asarray, vectors[0])),
            op.take_rows(jnp.asarray(rows)),
        ]

    assert op.shape == shape
    assert op.T.shape == shape[::-1]
    assert type(op.T) is type(op)
    expected = [
        matrix,
        matrix.T,
        matrix,
        2.5 * matrix,
        -1.5 * matrix,
        2.5 * matrix.T @ w,
        w + matrix,
        w[:2] + vectors[1][1].T[:2] @ matrix,
    ]
    expected += [m @ v for m, vs in zip((matrix, matrix.T), vectors, strict=True) for v in vs]
    expected += [v.T @ matrix.T for v in vectors[0]]
    expected += [matrix[rows]]
    for actual, dense in zip(compute(op, factor), expected, strict=True):
        close(actual, dense)


@each
def test_costs_are_counts(kind: str, shape: tuple[int, int]) -> None:
    op, _ = example(kind, shape)
    for count in (op.flops(), op.added_flops(), op.matmul_flops(1), op.matmul_flops(7)):
        assert isinstance(count, int) and count >= 0
    assert op.T.flops() == op.flops()


@pytest.mark.parametrize(
    "kind", ["low_rank", "hadamard", "kronecker", "kronecker_other", "dense", "product"]
)
@pytest.mark.parametrize("n", [1, 40])
def test_costs_match_xla(kind: str, n: int) -> None:
    """Costs are within 20% of XLA's count for the compiled function; fusion may save some."""
    op, _ = example(kind, WIDE)

    def counted(function: Callable[..., Any], *args: Any) -> float:
        analysis = jax.jit(function).lower(*args).compile().cost_analysis()
        assert analysis is not None
        return analysis["flops"]

    x = jnp.ones((WIDE[1], n))
    count = counted(lambda o, v: o @ v, op, x)
    assert 0.8 * op.matmul_flops(n) <= count <= 1.2 * op.matmul_flops(n)
    if kind != "dense":
        assert 0.8 * op.flops() <= counted(lambda o: o.dense(), op) <= 1.2 * op.flops()
