"""Rows and columns of an operator."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmix.operators import (
    Dense,
    Hadamard,
    Kronecker,
    LowRank,
    Operator,
    Product,
    Sparse,
    Zero,
)

from .kinds import CASES, KINDS, SQUARE, close, example, parts_of, shapes_of

SLICES = (
    slice(None),
    slice(2, 7),
    slice(4, 8),
    slice(1, None, 3),
    slice(None, None, -1),
    slice(3, 3),
)


@pytest.mark.usefixtures("no_compiling")
@pytest.mark.one_of(2)
@pytest.mark.parametrize("kind", KINDS)
def test_slices(kind: str) -> None:
    """A slice equals NumPy's, can be multiplied and transposed, and keeps the structure."""
    shape = shapes_of(kind)[-1]
    op, matrix = example(kind, shape)
    x = np.random.default_rng(3).normal(size=(shape[1], 2))

    def compute(op: Operator) -> list[jax.Array]:
        results = []
        for section in SLICES:
            rows, cols = op.rows(section), op.cols(section)
            both = rows.cols(section)
            assert [rows.shape, cols.shape, both.shape] == [
                expected_.shape
                for expected_ in (matrix[section], matrix[:, section], matrix[section][:, section])
            ]
            if Dense not in parts_of(op):
                assert Dense not in parts_of(rows) | parts_of(cols) | parts_of(both)
            results += [
                rows.dense(),
                cols.dense(),
                both.dense(),
                rows @ jnp.asarray(x),
                rows.T @ jnp.ones((rows.shape[0], 1)),
            ]
        return results

    results = iter(compute(op))
    for section in SLICES:
        expected_ = matrix[section]
        for expected in (
            expected_,
            matrix[:, section],
            expected_[:, section],
            expected_ @ x,
            expected_.sum(0)[:, None],
        ):
            close(next(results), expected)


@pytest.mark.parametrize(
    ("kind", "part", "type_", "numbers"),
    [
        ("low_rank", slice(2, 7), LowRank, 5 * 2 + 2 * 12),
        ("hadamard", slice(1, None, 3), Hadamard, 4 * 5 + 5 * 12),
        ("kronecker", slice(6, 12), Kronecker, 1 * 4 + 6 * 3),  # complete rows of X
        ("kronecker", slice(7, 10), Kronecker, 1 * 4 + 3 * 3),  # within one row of X
        ("blocks", slice(3, 9), Product, 2 * 9 + 6 * 3),  # two blocks and their positions
        ("diagonal", slice(2, 7), Sparse, 5 * 3),
        ("identity", slice(2, 7), Sparse, 5 * 3),
        ("zero", slice(2, 7), Zero, 0),
        ("blocks", slice(4, 4), Zero, 0),
        ("kronecker", slice(4, 4), Zero, 0),
    ],
)
def test_slices_are_small(kind: str, part: slice, type_: type, numbers: int) -> None:
    sliced = example(kind, SQUARE)[0].rows(part)
    assert type(sliced) is type_
    assert sum(leaf.size for leaf in jax.tree.leaves(sliced)) == numbers


slices = st.builds(
    slice,
    st.none() | st.integers(-14, 14),
    st.none() | st.integers(-14, 14),
    st.none() | st.integers(-3, 3).filter(bool),
)


@settings(max_examples=20)
@given(st.sampled_from(CASES), slices, slices, st.integers(0, 2**31))
def test_any_slice(case: tuple[str, Any], rows: slice, cols: slice, seed: int) -> None:
    kind, shape = case
    with jax.enable_x64(True):
        op, matrix = example(kind, shape, seed)
        sliced = jax.jit(lambda op: op.rows(rows).cols(cols).dense())(op)
        close(sliced, matrix[rows][:, cols])
