"""Products of arrays with a weight, as the primitive `dot_general` calls them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxmix.affine import AffineMap, shift
from jaxmix.operators import Dense, Diagonal, Identity, LowRank
from jaxmix.unmerged.products import dot_general, precise
from jaxmix.unmerged.weight import Weight

from ..uncompiled import uncompiled


def normal(*shape: int) -> Any:
    return jnp.asarray(np.random.default_rng(shape).normal(size=shape), jnp.float32)


LOW = LowRank(normal(6, 2), normal(2, 4))
# Two heads of three rows each.
HEADS = Weight(
    normal(2, 3, 4),
    AffineMap(Diagonal(normal(6)), Dense(normal(4, 4)), LOW),
    (-3, -2),
    (-1,),
    None,
    "factored",
)
STACK = Weight(
    normal(5, 6, 4),
    jax.vmap(shift)(LowRank(normal(5, 6, 2), normal(5, 2, 4))),
    (-2,),
    (-1,),
    -3,
    "factored",
)


@pytest.mark.parametrize("is_last", [True, False])
@pytest.mark.parametrize(
    ("weight", "shape", "contracted", "batch"),
    [
        (HEADS, (7, 4), ((1,), (2,)), ((), ())),
        (HEADS, (8, 4, 7), ((1,), (2,)), ((), ())),
        (HEADS, (3, 7, 2), ((2, 0), (0, 1)), ((), ())),
        (HEADS, (4,), ((0,), (2,)), ((), ())),
        (STACK, (7, 5, 4), ((2,), (2,)), ((1,), (0,))),
        (STACK, (7, 4), ((1,), (2,)), ((), ())),
        (STACK, (8, 7, 6), ((2,), (1,)), ((), ())),
    ],
)
def test_the_axes_are_those_of_jax(
    weight: Weight, shape: tuple[int, ...], contracted: Any, batch: Any, is_last: bool
) -> None:
    """Batch axes, then those of the left side, then those of the right side."""
    x = normal(*shape)
    if not is_last:
        contracted, batch = contracted[::-1], batch[::-1]
    params: dict[str, Any] = {
        "dimension_numbers": (contracted, batch),
        "precision": None,
        "preferred_element_type": None,
    }
    with uncompiled():
        dense = weight.dense()
        expected = lax.dot_general(*((x, dense) if is_last else (dense, x)), **params)
        actual = dot_general(*((x, weight) if is_last else (weight, x)), **params)
        assert actual is not None and actual.shape == expected.shape
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("weight", "contracted", "batch"),
    [
        (HEADS, ((0,), (0,)), ((), ())),
        (HEADS, ((0, 1), (0, 2)), ((), ())),
        (HEADS, ((1,), (2,)), ((0,), (0,))),
        (STACK, ((0,), (0,)), ((), ())),
    ],
    ids=["one of the rows' axes", "rows and columns", "heads as a batch", "layers"],
)
def test_other_sums_have_no_factored_form(weight: Weight, contracted: Any, batch: Any) -> None:
    """A product sums over all rows or all columns, and only layers are a batch."""
    sizes = dict(zip(*(c + b for c, b in zip(contracted, batch, strict=True)), strict=True))
    x = normal(*(weight.shape[sizes[k]] for k in sorted(sizes)))
    numbers = contracted, batch
    assert dot_general(x, weight, dimension_numbers=numbers, precision=None) is None


def test_layers_with_rotations_need_their_own_tokens() -> None:
    """Shared tokens would be rotated once for each layer."""
    step = AffineMap(Identity(6), Dense(normal(4, 4)), LOW)
    maps = jax.tree.map(lambda x: jnp.stack([x] * 5), step)
    own = Weight(normal(5, 6, 4), maps, (-2,), (-1,), -3, "factored")
    shared = ((1,), (2,)), ((), ())
    assert dot_general(normal(7, 4), own, dimension_numbers=shared, precision=None) is None
    apart = ((2,), (2,)), ((0,), (0,))
    with uncompiled():
        params: dict[str, Any] = {"dimension_numbers": apart, "precision": None}
        actual = dot_general(normal(5, 7, 4), own, **params)
        assert actual is not None
        expected = lax.dot_general(normal(5, 7, 4), own.dense(), **params)
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("precision", "name"),
    [
        (None, None),
        (lax.Precision.DEFAULT, None),
        (lax.Precision.HIGHEST, "highest"),
        ((lax.Precision.HIGH, lax.Precision.DEFAULT), "high"),
    ],
)
def test_operators_have_the_precision_of_the_product(precision: Any, name: str | None) -> None:
    with precise(precision):
        assert jax.config.jax_default_matmul_precision == name  # pyright: ignore
