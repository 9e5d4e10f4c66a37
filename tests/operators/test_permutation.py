"""Permutations: their inverses, and the dtypes that they leave unchanged."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix.operators import Permutation, Sparse

from .kinds import close

CYCLE = [2, 0, 3, 1]  # not its own inverse


def permutation(order: list[int]) -> Permutation:
    return Permutation(jnp.asarray(order, jnp.int32))


@pytest.mark.parametrize("order", [CYCLE, [0], []], ids=str)
def test_transpose_is_the_inverse(order: list[int]) -> None:
    """From both sides, bit for bit; the transpose of the transpose is the permutation."""
    p, x = permutation(order), jnp.arange(2.0 * len(order)).reshape(len(order), 2)
    np.testing.assert_array_equal(p.T @ (p @ x), x)
    np.testing.assert_array_equal((x.T @ p) @ p.T, x.T)
    np.testing.assert_array_equal(p.T.T.order, order)
    at = np.asarray(order, int)
    np.testing.assert_array_equal(p @ x, np.asarray(x)[at])
    np.testing.assert_array_equal(np.asarray(x.T @ p)[:, at], x.T)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_numbers_keep_their_dtype(dtype: Any) -> None:
    x = jnp.ones((4, 2), dtype)
    p = permutation(CYCLE)
    assert (p @ x).dtype == (x.T @ p).dtype == dtype


def test_scaled_permutation_has_the_dtype_of_the_factor() -> None:
    """A Python number has none, so the other operand decides."""
    p, x = permutation(CYCLE), jnp.ones((4, 1), jnp.bfloat16)
    assert p.scaled(jnp.asarray(0.5, jnp.float32)).values.dtype == jnp.float32
    scaled = p.scaled(0.5)
    assert isinstance(scaled, Sparse) and (scaled @ x).dtype == jnp.bfloat16
    close(scaled.dense(), 0.5 * np.eye(4)[CYCLE])


def test_rows_may_be_few_or_reversed() -> None:
    p = permutation(CYCLE)
    for part in (slice(1, 2), slice(None, None, -2), slice(3, 3)):
        close(p.rows(part).dense(), np.eye(4)[CYCLE][part])
