"""A weight that keeps base and map separate represents the array of the map's result."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix.affine import AffineMap, shift
from jaxmix.apply import slabs
from jaxmix.operators import Diagonal, Identity, Kronecker, LowRank, Zero, add, terms
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


def sum_of_terms(rows: int, cols: int) -> AffineMap:
    """A map that adds a low rank and a Kronecker product."""
    low = LowRank(normal(rows, 2), normal(2, cols))
    return shift(add(low, Kronecker(normal(rows // 2, cols // 2), normal(2, 2))))


@pytest.mark.parametrize("is_transposed", [False, True])
def test_several_terms_are_added_slab_by_slab(
    is_transposed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On one CPU device, in the orientation in which the leaf is stored; gradients too."""
    step = sum_of_terms(64, 96)
    base = normal(96, 64) if is_transposed else normal(64, 96)
    axes = ((-1,), (-2,)) if is_transposed else ((-2,), (-1,))

    def dense(base: Any, step: AffineMap) -> Any:
        return Weight(base, step, *axes).dense()

    def slopes() -> Any:
        # A new function each time, so that it is traced each time.
        return jax.grad(lambda *leaf: (dense(*leaf) ** 2).sum(), (0, 1))(base, step)

    def program() -> str:
        return str(jax.make_jaxpr(lambda *leaf: dense(*leaf))(base, step))

    monkeypatch.setattr(slabs, "SLAB", 32)
    expected, expected_slopes = dense(base, step), slopes()
    assert "scan[" not in program()  # tests have eight devices
    monkeypatch.setattr(jax, "devices", lambda *_: [None])
    assert "scan[" in program()
    np.testing.assert_allclose(dense(base, step), expected, rtol=1e-5, atol=1e-6)
    leaves = map(jax.tree.leaves, (slopes(), expected_slopes))
    for actual, slope in zip(*leaves, strict=True):
        np.testing.assert_allclose(actual, slope, rtol=1e-4, atol=1e-3)


def test_slabs_are_rows_of_the_leaf(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a leaf that stores the transpose, slabs are rows of the transpose."""
    seen = []
    monkeypatch.setattr(jax, "devices", lambda *_: [None])
    monkeypatch.setattr(slabs, "added", lambda matrix, _: seen.append(matrix.shape) or matrix)
    for base, *axes in ((normal(64, 96), (-2,), (-1,)), (normal(96, 64), (-1,), (-2,))):
        jax.eval_shape(Weight(base, sum_of_terms(64, 96), *axes).dense)
    assert seen == [(64, 96), (96, 64)]


@pytest.mark.parametrize("case", ["one term", "bfloat16", "a rotation", "a stack"])
def test_other_weights_are_one_expression(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "devices", lambda *_: [None])
    monkeypatch.setattr(slabs, "SLAB", 32)
    step, stack, lead = sum_of_terms(64, 6), None, ()
    dtype = jnp.bfloat16 if case == "bfloat16" else jnp.float32
    if case == "one term":
        step = shift(terms(step.shift)[0])
    elif case == "a rotation":
        step = AffineMap(Diagonal(normal(64)), Identity(6), step.shift)
    elif case == "a stack":
        step = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), step)
        stack, lead = -3, (2,)
    base = normal(*lead, 64, 6, dtype=dtype)
    program = jax.make_jaxpr(lambda base, step: Weight(base, step, (-2,), (-1,), stack).dense())
    assert "scan[" not in str(program(base, step))
