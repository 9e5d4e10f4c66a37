"""Sparse matrices, and selections of rows."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix.operators import Sparse
from jaxmix.operators.sparse import selection

MATRIX = np.array([[0, 0, 0], [7, 0, 0], [0, 0, 0], [0, 0, 3.0]])


def sparse() -> Sparse:
    """MATRIX, with 2 and 5 at one position."""
    at = jnp.array([[1, 3, 1], [0, 2, 0]], jnp.int32)
    return Sparse(jnp.array([2.0, 3.0, 5.0]), at, 4, 3)


def test_repeated_positions_are_summed_in_every_use() -> None:
    x = np.arange(12.0).reshape(4, 3) + 1
    np.testing.assert_array_equal(sparse().dense(), MATRIX)
    np.testing.assert_array_equal(sparse().added_to(jnp.asarray(x)), x + MATRIX)
    np.testing.assert_array_equal(sparse() @ jnp.asarray(x.T), MATRIX @ x.T)
    np.testing.assert_array_equal(jnp.asarray(x.T) @ sparse(), x.T @ MATRIX)
    np.testing.assert_array_equal(sparse().T.dense(), MATRIX.T)


@pytest.mark.parametrize(
    "part", [slice(1, 2), slice(None, None, -1), slice(3, 0, -2), slice(1, None, 2), slice(2, 3)]
)
def test_numbers_outside_of_the_rows_become_zero(part: slice) -> None:
    """All stay in the list: how many are inside is not known when the program is traced."""
    rows = sparse().rows(part)
    np.testing.assert_array_equal(rows.dense(), MATRIX[part])
    assert rows.values.shape == (3,)
    assert bool((rows.indices[0] >= 0).all() and (rows.indices[0] < rows.n_rows).all())


def test_no_rows_have_no_numbers() -> None:
    rows = sparse().rows(slice(2, 2))
    assert rows.shape == (0, 3) and rows.values.shape == (0,) and rows.indices.shape == (2, 0)
    empty = Sparse(jnp.zeros(0), jnp.zeros((2, 0), jnp.int32), 2, 3)
    np.testing.assert_array_equal(empty.dense(), np.zeros((2, 3)))


@pytest.mark.parametrize("kept", [range(1, 4), range(3, -1, -2), range(0)], ids=str)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_selection_is_indexing(kept: range, dtype: Any) -> None:
    """It has no dtype of its own, so that of the rows stays."""
    x = jnp.arange(8, dtype=dtype).reshape(4, 2)
    rows = selection(kept, 4) @ x
    assert rows.dtype == dtype
    np.testing.assert_array_equal(rows, np.asarray(x)[list(kept)])
    assert selection(kept, 4).shape == (len(kept), 4)
