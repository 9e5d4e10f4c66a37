"""An operator that a row selects from stacks, used alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxmix.bank.per_row import PerRow
from jaxmix.bank.slots import BROKEN, NOTHING, Selection
from jaxmix.operators import Diagonal, LowRank

from ..uncompiled import uncompiled


def test_dense_operators_of_strength_zero_are_left_out() -> None:
    stack = Diagonal(jnp.array([[np.inf, np.nan], [4.0, 5.0]]))
    operator = PerRow((stack,), (Selection(strengths=jnp.array([0.0, 2.0])),), 2, 2, False)
    assert operator.dense().tolist() == [[8.0, 0.0], [0.0, 10.0]]


@pytest.mark.parametrize("is_factor", [False, True])
def test_a_row_without_a_slot_has_zero_or_the_identity(is_factor: bool) -> None:
    """And a slot whose operator is broken gives NaN in both cases."""
    stack = Diagonal(jnp.array([[2.0, 3.0]]))

    def dense(slot: int) -> list[list[float]]:
        pick = Selection(jnp.asarray(slot, np.int32))
        return PerRow((stack,), (pick,), 2, 2, is_factor).dense().tolist()

    assert dense(0) == [[2, 0], [0, 3]]
    assert dense(NOTHING) == (np.eye(2) * is_factor).tolist()
    assert np.isnan(dense(BROKEN)).all()


def test_products_lookups_and_parts_are_those_of_the_dense_matrix() -> None:
    """Of the operator and of its transpose, which has the other shape."""
    rng = np.random.default_rng(0)
    with jax.enable_x64(True), uncompiled():
        stack = LowRank(
            jnp.asarray(rng.normal(size=(2, 3, 2))), jnp.asarray(rng.normal(size=(2, 2, 5)))
        )
        one = PerRow((stack,), (Selection(jnp.asarray(1, np.int32)),), 3, 5, False)
        matrix = np.asarray(stack.b[1] @ stack.a[1])
        for operator, expected in ((one, matrix), (one.T, matrix.T), (one.T.T, matrix)):
            rows, cols = operator.shape
            assert operator.shape == expected.shape
            left, right = (
                jnp.asarray(rng.normal(size=(4, rows))),
                jnp.asarray(rng.normal(size=(cols, 4))),
            )
            at = jnp.asarray([rows - 1, 0, 1], np.int32)
            np.testing.assert_allclose(operator.dense(), expected, rtol=1e-12)
            np.testing.assert_allclose(left @ operator, left @ expected, rtol=1e-12)
            np.testing.assert_allclose(operator @ right, expected @ right, rtol=1e-12)
            np.testing.assert_allclose(operator.take_rows(at), expected[np.asarray(at)], rtol=1e-12)
            np.testing.assert_allclose(
                operator.rows(slice(1, 3)).dense(), expected[1:3], rtol=1e-12
            )
            scaled = operator.scaled(-2.0)
            np.testing.assert_allclose(left @ scaled, -2 * left @ expected, rtol=1e-12)


@pytest.mark.parametrize("is_factor", [False, True])
def test_rows_add_their_products_to_what_they_get(is_factor: bool) -> None:
    """Rows that select nothing, too; only a row with a broken operator becomes NaN."""
    rng = np.random.default_rng(0)
    blocks = rng.normal(size=(2, 3, 3))
    stack = LowRank(jnp.asarray(blocks), jnp.broadcast_to(jnp.eye(3), (2, 3, 3)))
    slots = jnp.asarray([1, NOTHING, BROKEN, 0, 1], np.int32)
    y, x = (jnp.asarray(rng.normal(size=(5, 2, 3))) for _ in range(2))

    def added(y: jax.Array, x: jax.Array) -> jax.Array:
        def row(slot: jax.Array, y: jax.Array, x: jax.Array) -> jax.Array:
            operator = PerRow((stack,), (Selection(slot),), 3, 3, is_factor)
            return operator.product_added_to(y, x)

        return jax.vmap(row)(slots, y, x)

    matrices = [blocks[1], np.eye(3) * is_factor, blocks[0], blocks[0], blocks[1]]
    want = np.asarray(y) + np.asarray(x) @ np.stack(matrices)
    want[2] = np.nan
    np.testing.assert_allclose(added(y, x), want, rtol=1e-5)
    whole = jnp.asarray([0, 1, 3, 4])
    by_y, by_x = jax.grad(lambda y, x: added(y, x)[whole].sum(), argnums=(0, 1))(y, x)
    np.testing.assert_allclose(by_y[whole], np.ones((4, 2, 3)), rtol=1e-5)
    rows = np.stack(matrices).sum(2, keepdims=True).swapaxes(1, 2)
    np.testing.assert_allclose(
        by_x[whole], np.broadcast_to(rows, (5, 2, 3))[np.asarray(whole)], rtol=1e-5, atol=1e-6
    )


def test_devices_with_their_own_rows() -> None:
    """Under `shard_map`, where only the rows' slots vary over the devices."""
    rng = np.random.default_rng(0)
    b, a = rng.normal(size=(2, 3, 2)), rng.normal(size=(2, 2, 5))
    stack = LowRank(jnp.asarray(b), jnp.asarray(a))
    y, x = jnp.asarray(rng.normal(size=(2, 5))), jnp.asarray(rng.normal(size=(2, 3)))

    def run(slots: jax.Array) -> jax.Array:
        def row(slot: jax.Array) -> jax.Array:
            operator = PerRow((stack,), (Selection(slot),), 3, 5, False)
            return operator.product_added_to(y, x)

        return jax.vmap(row)(slots)

    mesh = jax.make_mesh((2,), ("x",), axis_types=(AxisType.Auto,))
    slots = jnp.asarray([1, BROKEN, 0, NOTHING], np.int32)
    got = jax.jit(jax.shard_map(run, mesh=mesh, in_specs=P("x"), out_specs=P("x")))(slots)
    expected = [y + x @ b[1] @ a[1], y * np.nan, y + x @ b[0] @ a[0], y]
    np.testing.assert_allclose(got, np.stack(expected), rtol=1e-5)
