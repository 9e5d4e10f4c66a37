"""Views of a weight: the same view of its dense array, or none."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix.affine import AffineMap, shift
from jaxmix.operators import Diagonal, Identity, LowRank
from jaxmix.unmerged.views import reshaped, sliced, unstacked
from jaxmix.unmerged.weight import Weight

from ..uncompiled import uncompiled


def normal(*shape: int) -> Any:
    return jnp.asarray(np.random.default_rng(shape).normal(size=shape), jnp.float32)


def weight(*shape: int, out: tuple[int, ...], into: tuple[int, ...]) -> Weight:
    """A weight with a low rank and a scale of its rows."""
    base = normal(*shape)
    rows, cols = (int(np.prod([shape[k] for k in side])) for side in (out, into))
    low = LowRank(normal(rows, 2), normal(2, cols))
    return Weight(base, AffineMap(Diagonal(normal(rows)), Identity(cols), low), out, into)


def stack(layers: int = 3) -> Weight:
    low = LowRank(normal(layers, 4, 2), normal(layers, 2, 6))
    return Weight(normal(layers, 4, 6), jax.vmap(shift)(low), (-2,), (-1,), -3)


@pytest.mark.parametrize(
    ("whole", "sizes"),
    [
        (weight(6, 4, out=(-2,), into=(-1,)), (2, 3, 4)),
        (weight(6, 4, out=(-1,), into=(-2,)), (3, 2, 2, 2)),
        (weight(2, 3, 4, out=(-3, -2), into=(-1,)), (6, 4)),
        (weight(2, 3, 4, out=(-3,), into=(-2, -1)), (2, 12)),
        (weight(6, 4, out=(-2,), into=(-1,)), (1, 6, 1, 4, 1)),
        (weight(1, 6, 1, 4, out=(-4, -3), into=(-2, -1)), (6, 4)),
        (weight(6, 4, out=(-2,), into=(-1,)), (6, 4)),
    ],
)
def test_reshaped_weight_is_the_reshaped_array(whole: Weight, sizes: tuple[int, ...]) -> None:
    """Axes may be split and merged, and axes of size one come and go."""
    with uncompiled():
        view = reshaped(whole, sizes)
        assert view is not None and view.shape == sizes
        np.testing.assert_allclose(view.dense(), whole.dense().reshape(sizes), rtol=1e-6)


@pytest.mark.parametrize(
    ("whole", "sizes"),
    [
        (weight(6, 4, out=(-2,), into=(-1,)), (24,)),
        (weight(6, 4, out=(-2,), into=(-1,)), (4, 6)),
        (weight(2, 3, 4, out=(-3,), into=(-2, -1)), (6, 4)),
        (weight(2, 3, 4, out=(-2, -3), into=(-1,)), (6, 4)),
        (stack(), (12, 6)),
    ],
    ids=["flat", "across", "rows and columns", "rows in another order", "layers"],
)
def test_other_shapes_have_no_view(whole: Weight, sizes: tuple[int, ...]) -> None:
    """Merged axes are all rows or all columns, in the order of the matrix."""
    assert reshaped(whole, sizes) is None


def test_layers_are_sliced_and_picked_one_by_one() -> None:
    """A slice of rows has no view, and a stack of several layers keeps its axis."""
    with uncompiled():
        whole = stack()
        dense = whole.dense()
        two = sliced(whole, [1, 0, 0], [2, 4, 6])
        one = sliced(whole, [jnp.int32(2), 0, 0], [1, 4, 6])
        assert two is not None and one is not None
        np.testing.assert_allclose(two.dense(), dense[1:], rtol=1e-6)
        last = unstacked(one)
        assert last is not None and not last.is_stacked
        np.testing.assert_allclose(last.dense(), dense[2], rtol=1e-6)
        low = LowRank(normal(1, 6, 2), normal(1, 2, 4))
        between = Weight(normal(6, 1, 4), jax.vmap(shift)(low), (-3,), (-1,), -2)
        single = unstacked(between)
        assert single is not None
        np.testing.assert_allclose(single.dense(), between.dense()[:, 0], rtol=1e-6)
    assert unstacked(two) is None and unstacked(weight(6, 4, out=(-2,), into=(-1,))) is None
    assert sliced(whole, [0, 1, 0], [3, 2, 6]) is None
    assert sliced(weight(6, 4, out=(-2,), into=(-1,)), [0, 0], [3, 4]) is None
