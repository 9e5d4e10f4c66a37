"""What all operators inherit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix.operators import Diagonal, Identity, LowRank, Operator, Permutation, Sparse, Sum
from jaxmix.operators.base import slice_indices

from .kinds import close


def test_incomplete_operators_cannot_be_created() -> None:
    """A subclass without all abstract methods can't be instantiated."""

    class Half(Operator):
        pass

    with pytest.raises(TypeError, match="abstract"):
        Half()  # pyright: ignore[reportAbstractUsage]


@pytest.mark.parametrize("size", [0, 1, 5])
def test_slice_selects_the_indices_that_python_selects(size: int) -> None:
    """Also from the end, backwards, and beyond both ends."""
    ends = (None, -7, -2, 0, 3, 9)
    parts = [slice(a, b, step) for a in ends for b in ends for step in (None, 2, -1, -3)]
    for part in parts:
        assert list(slice_indices(part, size)) == list(range(size))[part]


def test_rows_of_operators_without_floats_have_the_default_dtype() -> None:
    """A row may be taken repeatedly, or none at all."""
    order = jnp.array([2, 0, 1])
    for operator in (Identity(3), Permutation(order), Sum((Identity(3), Permutation(order)))):
        matrix = np.asarray(operator.dense())
        taken = operator.take_rows(jnp.array([1, 1, 0]))
        assert taken.dtype == jnp.float64
        close(taken, matrix[[1, 1, 0]])
        assert operator.take_rows(jnp.zeros(0, int)).shape == (0, 3)


def test_rows_have_the_dtype_of_the_floats() -> None:
    """Integers of an operator, such as positions, do not count."""
    at = jnp.array([1])
    narrow = Sparse(jnp.ones(1, jnp.bfloat16), jnp.array([[1], [0]]), 2, 3)
    assert narrow.take_rows(at).dtype == jnp.bfloat16
    mixed = Sum((Diagonal(jnp.ones(2, jnp.float32)), LowRank(jnp.ones((2, 1)), jnp.ones((1, 2)))))
    with jax.numpy_dtype_promotion("standard"):
        assert mixed.take_rows(at).dtype == jnp.float64


def test_added_costs_include_the_sum() -> None:
    """By default an operator is made dense and added."""
    low = LowRank(jnp.ones((3, 2)), jnp.ones((2, 5)))
    assert low.added_flops() == low.flops() + 3 * 5 == 2 * 2 * 15 + 15
