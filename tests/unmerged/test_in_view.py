"""Products with a weight to which Kronecker products are added while it is read."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxmix.affine import AffineMap, shift
from jaxmix.operators import Diagonal, Identity, Kronecker, Operator, Sum
from jaxmix.unmerged.in_view import product_in_view, rows_of_view
from jaxmix.unmerged.weight import Weight

from ..uncompiled import uncompiled


def normal(*shape: int) -> Any:
    return jnp.asarray(np.random.default_rng(shape).normal(size=shape), jnp.float32)


def kronecker(k: int = 8) -> Kronecker:
    return Kronecker(normal(32 // k, 3), normal(k, 8))


def weight(delta: Operator) -> Weight:
    return Weight(normal(32, 24), shift(delta), (-2,), (-1,))


@pytest.mark.parametrize("is_last", [False, True])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("stored", ["out in", "out in, transposed", "in out, transposed"])
def test_products_match_the_dense_weight(is_last: bool, axis: int, stored: str) -> None:
    """Over rows and columns, from both sides, and of a weight that is a leaf's transpose."""
    own = weight(Sum((kronecker(), kronecker())))
    if stored == "out in, transposed":
        own = weight(kronecker()).moved((1, 0))
    elif stored == "in out, transposed":
        own = Weight(normal(24, 32), shift(kronecker()), (-1,), (-2,)).moved((1, 0))
    assert rows_of_view(own) == 8
    x = normal(own.shape[axis], 5)
    contracted = ((0,), (axis,)) if is_last else ((axis,), (0,))
    params: dict[str, Any] = {"dimension_numbers": (contracted, ((), ())), "precision": None}
    with uncompiled():
        dense = own.dense()
        pair = (x, dense) if is_last else (dense, x)
        expected = lax.dot_general(*pair, **params)
        actual = product_in_view(x, own, is_last=is_last, **params)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_weights_without_a_view() -> None:
    """Rows that are no whole tile, other operators, scaled rows, and heads in separate axes."""
    assert rows_of_view(weight(kronecker())) == 8
    assert rows_of_view(weight(kronecker(4))) is None
    assert rows_of_view(weight(Sum((kronecker(8), kronecker(16))))) is None
    assert rows_of_view(weight(Sum((kronecker(), Diagonal(normal(32)))))) is None
    scaled = AffineMap(Diagonal(normal(32)), Identity(24), kronecker())
    assert rows_of_view(Weight(normal(32, 24), scaled, (-2,), (-1,))) is None
    assert rows_of_view(Weight(normal(4, 8, 24), shift(kronecker()), (-3, -2), (-1,))) is None
