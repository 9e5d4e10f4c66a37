"""Operators as pytrees: dtypes, transforms, immutability."""

from dataclasses import FrozenInstanceError, fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix.operators import (
    Identity,
    Operator,
    add,
    multiply,
)

from .kinds import KINDS, SQUARE, cast, close, example


@pytest.mark.one_of(2)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64, jnp.bfloat16, jnp.float16], ids=str)
def test_dtypes_are_kept(kind: str, dtype: Any) -> None:
    """Results keep the dtype; an operator without floats takes the other operand's dtype."""
    op = cast(example(kind, SQUARE)[0], dtype)

    def arrays(op: Operator) -> dict[str, jax.Array]:
        x, rows = jnp.ones((12, 3), dtype), slice(1, 6)
        results = {"matmul": op @ x, "transposed": op.T @ x}
        results |= {"added": op.added_to(jnp.ones(SQUARE, dtype)), "dense @": op.dense() @ x}
        for name, operator in {"whole": op, "rows": op.rows(rows), "cols": op.cols(rows)}.items():
            results[name] = operator.dense() @ jnp.ones((operator.shape[1], 1), dtype)
        if any(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(op)):
            results["dense"] = op.dense()
            results["scaled"] = op.scaled(jnp.asarray(2, dtype)).dense()
            results["by a number"] = op.scaled(2.0).dense()
            results["sum"] = add(op, Identity(12)).dense()
            results["product"] = multiply(op.rows(rows), op.T).dense()
        return results

    results = {name: array.dtype for name, array in jax.eval_shape(arrays, op).items()}
    assert results == dict.fromkeys(results, dtype)
    if not jax.tree.leaves(op):
        assert op.dense().weak_type


@pytest.mark.one_of(3)
@pytest.mark.parametrize("kind", KINDS)
def test_transforms(kind: str) -> None:
    """jit, vmap, grad, eval_shape, and a round trip through a pytree."""
    op, matrix = example(kind, SQUARE)
    x = jnp.asarray(np.random.default_rng(4).normal(size=(12, 3)))
    leaves, treedef = jax.tree.flatten(op)
    assert hash(treedef) == hash(jax.tree.structure(example(kind, SQUARE, seed=9)[0]))
    rebuilt = jax.tree.unflatten(treedef, leaves)
    close(jax.jit(lambda o, v: o @ v)(rebuilt, x), matrix @ np.asarray(x))
    shaped = jax.eval_shape(lambda o, v: (o.dense(), o @ v, o.rows(slice(0, 5)).dense()), op, x)
    assert [s.shape for s in shaped] == [(12, 12), (12, 3), (5, 12)]
    if not leaves:
        return
    pair = [example(kind, SQUARE, seed)[0] for seed in (5, 6)]
    stacked = jax.tree.map(lambda a, b: jnp.stack([a, b]), *pair)

    def arrays(op: Operator) -> tuple[jax.Array, ...]:
        return op.dense(), op @ x, op.cols(slice(1, 9, 2)).dense()

    results = jax.jit(jax.vmap(arrays))(stacked)
    for i, operator in enumerate(pair):
        dense = np.asarray(operator.dense())
        for result, expected in zip(results, (dense, dense @ x, dense[:, 1:9:2]), strict=True):
            close(result[i], np.asarray(expected))

    @jax.jit
    def loss(numbers: list[jax.Array]) -> jax.Array:
        values = iter(numbers)
        complete = [next(values) if leaf.dtype == jnp.float64 else leaf for leaf in leaves]
        return jnp.sum(jnp.sin(jax.tree.unflatten(treedef, complete) @ x))

    floats = [leaf for leaf in leaves if leaf.dtype == jnp.float64]
    slopes = jax.jit(jax.grad(loss))(floats)
    step = 1e-6
    for i, slope in enumerate(slopes):
        direction = jnp.asarray(np.random.default_rng(i).normal(size=slope.shape))
        above, below = (
            [*floats[:i], floats[i] + s * direction, *floats[i + 1 :]] for s in (step, -step)
        )
        expected = (loss(above) - loss(below)) / (2 * step)
        np.testing.assert_allclose(jnp.vdot(slope, direction), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_and_comparable(kind: str) -> None:
    """Fields are read-only; equality is identity, so arrays are never compared by accident."""
    op, _ = example(kind, SQUARE)
    with pytest.raises(FrozenInstanceError):
        setattr(op, fields(op)[0].name, None)  # pyright: ignore[reportArgumentType]
    assert op == op and op != example(kind, SQUARE)[0]
    assert len({op, op}) == 1
