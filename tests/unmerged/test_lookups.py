"""Convolutions and lookups with a weight, as JAX's primitives call them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxmix.affine import AffineMap, shift
from jaxmix.operators import Dense, Diagonal, Hadamard, Identity, LowRank, Zero, add
from jaxmix.unmerged.lookups import conv, gather, sum_as_low_rank
from jaxmix.unmerged.weight import Weight

from ..uncompiled import uncompiled


def normal(*shape: int) -> Any:
    return jnp.asarray(np.random.default_rng(shape).normal(size=shape), jnp.float32)


def low(rank: int = 2, rows: int = 7, cols: int = 4) -> LowRank:
    return LowRank(normal(rows, rank), normal(rank, cols))


def test_a_sum_of_low_ranks_is_one_low_rank() -> None:
    """A Hadamard product of two is one, and a single other term makes it none."""
    with uncompiled():
        total = sum_as_low_rank(add(add(low(1), low(3)), Hadamard(low(2), low(1))))
        assert isinstance(total, LowRank) and total.rank == 1 + 3 + 2
        expected = low(1).dense() + low(3).dense() + low(2).dense() * low(1).dense()
        np.testing.assert_allclose(total.dense(), expected, rtol=1e-5, atol=1e-6)
        assert isinstance(sum_as_low_rank(Zero(7, 4)), Zero)
        assert sum_as_low_rank(add(low(1), Dense(normal(7, 4)))) is None


def params_of(fn: Any, *args: Any) -> dict[str, Any]:
    """Returns the parameters of the last primitive of a function."""
    return jax.make_jaxpr(fn)(*args).eqns[-1].params


@pytest.mark.parametrize("mode", ["clip", "fill"])
def test_rows_and_columns_are_looked_up(mode: Any) -> None:
    """Of a weight with scales, rotations of the other side, and a low rank."""
    at = jnp.array([[6, 0], [2, 2]], jnp.int32)
    step = AffineMap(Diagonal(normal(7)), Dense(normal(4, 4)), low())
    embedding = Weight(normal(7, 4), step, (-2,), (-1,), None, "factored")

    def rows(w: Any, at: Any) -> Any:
        dims = lax.GatherDimensionNumbers((2,), (0,), (0,))
        return lax.gather(w, at[..., None], dims, (1, 4), mode=mode)

    def columns(w: Any, at: Any) -> Any:
        dims = lax.GatherDimensionNumbers((0,), (1,), (1,))
        return lax.gather(w, at[..., None], dims, (4, 1), mode=mode)

    for take, own in ((rows, embedding), (columns, embedding.moved((1, 0)))):
        params = params_of(take, own.base, at)
        with uncompiled():
            found = gather(own, at[..., None], **params)
            assert found is not None
            np.testing.assert_allclose(found, take(own.dense(), at), rtol=1e-4, atol=1e-5)


def test_lookups_without_a_factored_form() -> None:
    """A part of a row, and a map that mixes the rows."""
    at = jnp.array([[6], [0]], jnp.int32)
    dims = lax.GatherDimensionNumbers((1,), (0,), (0,))
    whole, part = (
        params_of(lambda w, at, n=n: lax.gather(w, at, dims, (1, n)), normal(7, 4), at)
        for n in (4, 3)
    )
    embedding = Weight(normal(7, 4), shift(low()), (-2,), (-1,), None, "factored")
    mixed = AffineMap(Dense(normal(7, 7)), Identity(4), low())
    assert gather(embedding, at, **part) is None
    assert gather(Weight(normal(7, 4), mixed, (-2,), (-1,)), at, **whole) is None


def test_convolutions_with_other_axes_or_operators_have_no_form() -> None:
    """Rotated inputs, a dense Δ, and batch groups."""
    x, base = normal(2, 3, 5), normal(4, 3, 2)

    def run(x: Any, w: Any, groups: int = 1) -> Any:
        return lax.conv_general_dilated(x, w, (1,), "SAME", batch_group_count=groups)

    params = params_of(run, x, base)
    step = shift(low(2, 4, 6))
    own = Weight(base, step, (-3,), (-2, -1), None, "factored")
    with uncompiled():
        y = conv(x, own, **params)
        assert y is not None
        np.testing.assert_allclose(y, run(x, own.dense()), rtol=1e-4, atol=1e-5)
    grouped = params_of(lambda x, w: run(x, w, 2), x, base)
    assert conv(x, own, **grouped) is None
    assert conv(x, own.with_delta(Dense(normal(4, 6))), **params) is None
    rotated = AffineMap(Identity(4), Dense(normal(6, 6)), Zero(4, 6))
    assert conv(x, Weight(base, rotated, (-3,), (-2, -1)), **params) is None
