"""A weight that keeps base and map separate represents the array of the map's result."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmix.affine import AffineMap, shift
from jaxmix.operators import Diagonal, Identity, LowRank, Zero
from jaxmix.unmerged.weight import Weight

from ..uncompiled import uncompiled


def normal(*shape: int, dtype: Any = jnp.float32) -> Any:
    return jnp.asarray(np.random.default_rng(shape).normal(size=shape), dtype)


STEP = AffineMap(Diagonal(normal(6)), Identity(4), LowRank(normal(6, 2), normal(2, 4)))
HEADS = Weight(normal(2, 4, 3), STEP, (-3, -1), (-2,))


def test_rows_and_columns_may_be_any_axes() -> None:
    """Two axes of rows around one of columns: the map is that of the matrix (6, 4)."""
    assert HEADS.matrix_shape == (6, 4) and HEADS.axes == ((0, 2), (1,), None)
    with uncompiled():
        matrix = HEADS.base.transpose(0, 2, 1).reshape(6, 4)
        expected = STEP(matrix).reshape(2, 3, 4).transpose(0, 2, 1)
        np.testing.assert_allclose(HEADS.dense(), expected, rtol=1e-5)
        moved = HEADS.moved((2, 0, 1))
        np.testing.assert_allclose(moved.dense(), expected.transpose(2, 0, 1), rtol=1e-5)
        assert moved.shape == (3, 2, 4) and not moved.is_transposed
        turned = Weight(HEADS.base, STEP, (-1, -3), (-2,))
        expected = STEP(HEADS.base.transpose(2, 0, 1).reshape(6, 4)).reshape(3, 2, 4)
        np.testing.assert_allclose(turned.dense(), expected.transpose(1, 2, 0), rtol=1e-5)


def test_a_matrix_transposed_twice_is_stored_as_before() -> None:
    plain = Weight(normal(6, 4), STEP, (-2,), (-1,))
    once = plain.moved((1, 0))
    assert once.is_transposed and not once.moved((1, 0)).is_transposed
    assert not plain.moved((0, 1)).is_transposed


def test_maps_of_layers_are_transposed_one_by_one() -> None:
    """And a scan that takes the first axis leaves a weight without a stack."""
    with uncompiled():
        low = LowRank(normal(3, 6, 2), normal(3, 2, 4))
        stack = Weight(normal(3, 6, 4), jax.vmap(shift)(low), (-2,), (-1,), -3)
        back = stack.map_to(True)
        layer = jax.tree.map(lambda x: x[1], back)
        np.testing.assert_allclose(layer.shift.dense(), (low.b[1] @ low.a[1]).T, rtol=1e-5)
        assert stack.count(lambda step: step.shape) == (6, 4)
        one = jax.tree.map(lambda x: x[1], stack)
        assert stack.is_stacked and not one.is_stacked and one.axes == ((0,), (1,), None)
        np.testing.assert_allclose(one.dense(), stack.dense()[1], rtol=1e-5)


def test_a_half_weight_is_rounded_once() -> None:
    """The map runs in float32, so a small Δ is not lost before the sum."""
    base = jnp.ones((2, 3), jnp.bfloat16)
    delta = LowRank(jnp.full((2, 1), 0.004), jnp.ones((1, 3)))
    both = shift(delta).after(shift(delta))
    with uncompiled():
        weight = Weight(base, both, (-2,), (-1,))
        np.testing.assert_array_equal(weight.dense(), jnp.full((2, 3), 1.0078125, jnp.bfloat16))
        assert weight.dense().dtype == weight.dtype == jnp.bfloat16
        assert weight.cast(jnp.float32).dense().dtype == jnp.float32
        plain = weight.with_delta(Zero(2, 3))
        np.testing.assert_array_equal(plain.dense(), base)
