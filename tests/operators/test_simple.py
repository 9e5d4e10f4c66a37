"""The basic operators: gated diagonals, and operators without a dtype of their own."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix.operators import Dense, Diagonal, Identity, Zero

X = jnp.array([[1.0, np.nan], [np.inf, -np.inf], [np.nan, 3.0]])
D = jnp.array([2.0, 0.0, 0.0])


def test_zeros_of_a_gate_hide_what_is_not_finite() -> None:
    """From both sides. Without gates, zero times NaN is NaN."""
    expected = [[2.0, np.nan], [0.0, 0.0], [0.0, 0.0]]
    np.testing.assert_array_equal(Diagonal(D, gates=True) @ X, expected)
    np.testing.assert_array_equal(X.T @ Diagonal(D, gates=True), np.transpose(expected))
    assert np.isnan(np.asarray(Diagonal(D) @ X)[1:]).any(1).all()


def test_gates_stay_when_scaled_or_transposed() -> None:
    gate = Diagonal(D, gates=True)
    assert gate.scaled(3.0).gates and gate.T.gates and not Diagonal(D).scaled(3.0).gates
    np.testing.assert_array_equal(gate.scaled(3.0).d, 3 * np.asarray(D))


def test_gates_have_the_gradients_of_a_diagonal() -> None:
    """A closed gate passes the gradient of its own number, where that is finite."""
    x = jnp.array([[1.0, 2.0], [3.0, 4.0], [np.nan, 5.0]])
    slope = jax.grad(lambda d: jnp.sum(Diagonal(d, gates=True) @ x))(D.astype(x.dtype))
    np.testing.assert_array_equal(slope, [3.0, 7.0, 5.0])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_zero_and_identity_adopt_the_other_dtype(dtype: Any) -> None:
    """The identity and the sum with zero are the operand itself."""
    x, zero = jnp.ones((2, 3), dtype), Zero(5, 2)
    assert Identity(2) @ x is x and x @ Identity(3) is x
    assert Zero(2, 3).added_to(x) is x and zero.scaled(2.0) is zero
    assert (zero @ x).dtype == (x @ Zero(3, 4)).dtype == dtype
    assert (zero @ x).shape == (5, 3) and (x @ Zero(3, 4)).shape == (2, 4)
    for operator in (Identity(3), Identity(3).scaled(2.0), Zero(3, 3)):
        assert (x + jnp.ones((2, 3), dtype) @ operator.dense()).dtype == dtype


def test_rows_keep_their_order() -> None:
    """A reversed slice of a diagonal is not a diagonal."""
    d = jnp.array([1.0, 2.0, 3.0])
    np.testing.assert_array_equal(
        Diagonal(d).rows(slice(None, 0, -1)).dense(), [[0, 0, 3], [0, 2, 0]]
    )
    np.testing.assert_array_equal(Identity(3).rows(slice(2, None)).dense(), [[0, 0, 1]])
    np.testing.assert_array_equal(Dense(X).rows(slice(2, 9)).dense(), X[2:])
    assert Zero(3, 2).rows(slice(None, None, 2)).shape == (2, 2)
