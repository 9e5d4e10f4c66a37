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

from .kinds import KINDS, SQUARE, cast, close, made


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64, jnp.bfloat16, jnp.float16], ids=str)
def test_dtypes_are_kept(kind: str, dtype: Any) -> None:
    """Under strict promotion; an operator without floats takes the other operand's dtype."""
    op = cast(made(kind, SQUARE)[0], dtype)

    def arrays(op: Operator) -> dict[str, jax.Array]:
        x, part = jnp.ones((12, 3), dtype), slice(1, 6)
        found = {"matmul": op @ x, "transposed": op.T @ x}
        found |= {"added": op.added_to(jnp.ones(SQUARE, dtype)), "dense @": op.dense() @ x}
        for name, operator in {"whole": op, "rows": op.rows(part), "cols": op.cols(part)}.items():
            found[name] = operator.dense() @ jnp.ones((operator.shape[1], 1), dtype)
        if any(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(op)):
            found["dense"] = op.dense()
            found["scaled"] = op.scaled(jnp.asarray(2, dtype)).dense()
            found["by a number"] = op.scaled(2.0).dense()
            found["sum"] = add(op, Identity(12)).dense()
            found["product"] = multiply(op.rows(part), op.T).dense()
        return found

    found = {name: array.dtype for name, array in jax.eval_shape(arrays, op).items()}
    assert found == dict.fromkeys(found, dtype)
    if not jax.tree.leaves(op):
        assert op.dense().weak_type


@pytest.mark.parametrize("kind", KINDS)
def test_transforms(kind: str) -> None:
    """jit, vmap, grad, eval_shape, and a round trip through a pytree."""
    op, matrix = made(kind, SQUARE)
    x = jnp.asarray(np.random.default_rng(4).normal(size=(12, 3)))
    leaves, treedef = jax.tree.flatten(op)
    assert hash(treedef) == hash(jax.tree.structure(made(kind, SQUARE, seed=9)[0]))
    again = jax.tree.unflatten(treedef, leaves)
    close(jax.jit(lambda o, v: o @ v)(again, x), matrix @ np.asarray(x))
    shaped = jax.eval_shape(lambda o, v: (o.dense(), o @ v, o.rows(slice(0, 5)).dense()), op, x)
    assert [s.shape for s in shaped] == [(12, 12), (12, 3), (5, 12)]
    if not leaves:
        return
    pair = [made(kind, SQUARE, seed)[0] for seed in (5, 6)]
    places = jax.tree.map(lambda a, b: jnp.stack([a, b]), *pair)

    def arrays(op: Operator) -> tuple[jax.Array, ...]:
        return op.dense(), op @ x, op.cols(slice(1, 9, 2)).dense()

    both = jax.jit(jax.vmap(arrays))(places)
    for i, operator in enumerate(pair):
        dense = np.asarray(operator.dense())
        for found, expected in zip(both, (dense, dense @ x, dense[:, 1:9:2]), strict=True):
            close(found[i], np.asarray(expected))

    @jax.jit
    def loss(numbers: list[jax.Array]) -> jax.Array:
        it = iter(numbers)
        full = [next(it) if leaf.dtype == jnp.float64 else leaf for leaf in leaves]
        return jnp.sum(jnp.sin(jax.tree.unflatten(treedef, full) @ x))

    floats = [leaf for leaf in leaves if leaf.dtype == jnp.float64]
    slopes = jax.jit(jax.grad(loss))(floats)
    step = 1e-6
    for i, slope in enumerate(slopes):
        way = jnp.asarray(np.random.default_rng(i).normal(size=slope.shape))
        ahead, back = ([*floats[:i], floats[i] + s * way, *floats[i + 1 :]] for s in (step, -step))
        expected = (loss(ahead) - loss(back)) / (2 * step)
        np.testing.assert_allclose(jnp.vdot(slope, way), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_and_comparable(kind: str) -> None:
    """Fields are read-only; equality is identity, so arrays are never compared by accident."""
    op, _ = made(kind, SQUARE)
    with pytest.raises(FrozenInstanceError):
        setattr(op, fields(op)[0].name, None)  # pyright: ignore[reportArgumentType]
    assert op == op and op != made(kind, SQUARE)[0]
    assert len({op, op}) == 1
