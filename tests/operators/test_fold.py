"""Sums and products of two or more operators."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmix.errors import ShapeError
from jaxmix.operators import (
    BlockDiagonal,
    Dense,
    Diagonal,
    Hadamard,
    Identity,
    Kronecker,
    LowRank,
    Operator,
    Product,
    Sparse,
    Sum,
    Zero,
    add,
    multiply,
)

from .kinds import (
    KINDS,
    SHAPES,
    SQUARE,
    SQUARE_KINDS,
    TALL,
    WIDE,
    close,
    example,
    parts_of,
    shapes_of,
)


@pytest.mark.usefixtures("no_compiling")
@pytest.mark.parametrize(
    "shape", [SHAPES[0], pytest.param(SHAPES[1], marks=pytest.mark.thorough)], ids=str
)
def test_add_agrees_with_dense(shape: tuple[int, int]) -> None:
    """Every pair of kinds."""
    kinds = [kind for kind in KINDS if shape in shapes_of(kind)]
    pairs = [(example(x, shape, 1), example(y, shape, 2)) for x, y in product(kinds, repeat=2)]

    def totals_of(pairs: list[tuple[Operator, Operator]]) -> list[jax.Array]:
        totals = [add(x, y) for x, y in pairs]
        for (x, y), total in zip(pairs, totals, strict=True):
            assert total.flops() <= x.flops() + y.added_flops()
            assert Dense in parts_of(x) | parts_of(y) or Dense not in parts_of(total)
        return [total.dense() for total in totals]

    for total, ((_, x), (_, y)) in zip(
        totals_of([(x[0], y[0]) for x, y in pairs]), pairs, strict=True
    ):
        close(total, x + y)


@pytest.mark.usefixtures("no_compiling")
@pytest.mark.parametrize(
    ("outer", "inner"),
    [
        (WIDE, SQUARE),
        pytest.param(SQUARE, TALL, marks=pytest.mark.thorough),
        (SQUARE, SQUARE),
    ],
    ids=str,
)
def test_multiply_agrees_with_dense(outer: tuple[int, int], inner: tuple[int, int]) -> None:
    """Every pair of kinds; two square shapes test the kinds that are always square."""
    both_square = outer == inner == SQUARE
    kinds = list(SQUARE_KINDS if both_square else KINDS)
    firsts = [example(kind, outer, 1) for kind in kinds if outer in shapes_of(kind)]
    seconds = [example(kind, inner, 2) for kind in kinds if inner in shapes_of(kind)]
    pairs = list(product(firsts, seconds))

    def products_of(pairs: list[tuple[Operator, Operator]]) -> list[jax.Array]:
        folded = [multiply(x, y) for x, y in pairs]
        for (x, y), result in zip(pairs, folded, strict=True):
            assert result.flops() <= Product(x, y).flops()
            assert Dense in parts_of(x) | parts_of(y) or Dense not in parts_of(result)
        return [result.dense() for result in folded]

    for folded, ((_, x), (_, y)) in zip(
        products_of([(x[0], y[0]) for x, y in pairs]), pairs, strict=True
    ):
        close(folded, x @ y)


ADDS = {
    ("zero", "kronecker"): Kronecker,
    ("sparse", "zero"): Sparse,
    ("low_rank", "low_rank_other"): LowRank,
    ("sparse", "sparse"): Sparse,
    ("dense", "dense"): Dense,
    ("diagonal", "identity"): Diagonal,
    ("identity", "identity"): Diagonal,
    ("blocks", "blocks"): BlockDiagonal,
    ("blocks_shared", "blocks_shared"): BlockDiagonal,
    ("blocks", "blocks_large"): Sum,
    ("kronecker", "hadamard"): Sum,
    ("dense", "low_rank"): Sum,
}
MULTIPLIES = {
    ("identity", "kronecker"): Kronecker,
    ("sum", "identity"): Sum,
    ("zero", "dense"): Zero,
    ("product", "zero"): Zero,
    ("low_rank", "low_rank_other"): LowRank,
    ("diagonal", "diagonal"): Diagonal,
    ("diagonal", "blocks_shared"): BlockDiagonal,
    ("blocks", "diagonal"): BlockDiagonal,
    ("blocks", "blocks"): BlockDiagonal,
    ("blocks", "blocks_large"): BlockDiagonal,
    ("blocks_large", "blocks_shared"): BlockDiagonal,
    ("blocks", "blocks_other"): Product,
    ("diagonal", "hadamard"): Hadamard,
    ("hadamard", "diagonal"): Hadamard,
    ("diagonal", "sparse"): Sparse,
    ("sparse", "diagonal"): Sparse,
    ("kronecker", "kronecker_other"): Kronecker,
    ("kronecker", "kronecker"): Product,
    ("blocks", "kronecker"): Product,
    ("diagonal", "kronecker"): Product,
    ("blocks", "hadamard"): Product,
    ("dense", "blocks"): Dense,
    ("kronecker", "dense"): Dense,
} | {
    pair: LowRank
    for kind in KINDS
    for pair in ((kind, "low_rank"), ("low_rank", kind))
    if kind != "zero"
}


@pytest.mark.parametrize(("pair", "type_"), ADDS.items(), ids=str)
def test_structure_of_sums(pair: tuple[str, str], type_: type) -> None:
    assert type(add(*(example(kind, SQUARE)[0] for kind in pair))) is type_


@pytest.mark.parametrize(("pair", "type_"), MULTIPLIES.items(), ids=str)
def test_structure_of_products(pair: tuple[str, str], type_: type) -> None:
    assert type(multiply(*(example(kind, SQUARE)[0] for kind in pair))) is type_


def test_products_stay_compact() -> None:
    """A product of low ranks has the smaller rank, shared blocks stay shared, inner sums merge."""
    low, three = example("low_rank", SQUARE)[0], example("low_rank_other", SQUARE)[0]
    for folded in (multiply(low, three), multiply(three, low)):
        assert isinstance(folded, LowRank) and folded.rank == 2
    shared = example("blocks_shared", SQUARE)[0]
    folded = multiply(shared, shared)
    assert isinstance(folded, BlockDiagonal) and folded.copies == 2
    total = add(add(low, example("sparse", SQUARE)[0]), add(example("hadamard", SQUARE)[0], three))
    assert isinstance(total, Sum)
    assert [type(term) for term in total.terms] == [LowRank, Sparse, Hadamard]
    merged = total.terms[0]
    assert isinstance(merged, LowRank) and merged.rank == 5


def test_folding_low_ranks_saves_work() -> None:
    x, y = example("low_rank", WIDE)[0], example("low_rank_other", WIDE)[0]
    assert add(x, y).flops() == x.flops() + y.flops() < Sum((x, y)).flops()
    turn = example("blocks", SQUARE)[0]
    assert multiply(x, turn).flops() == x.flops() < Product(x, turn).flops()


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ShapeError) as caught:
        add(Zero(2, 3), Zero(3, 2))
    assert str(caught.value) == (
        "add: the matrices have shapes (2, 3) and (3, 2), expected equal shapes. Do both updates "
        "belong to the same weight?"
    )
    with pytest.raises(ShapeError) as caught:
        multiply(Identity(2), Zero(3, 2))
    assert str(caught.value) == (
        "multiply: the matrices have shapes (2, 2) and (3, 2), expected equal inner sizes. Do both "
        "updates belong to the same weight?"
    )


@settings(max_examples=20)
@given(
    st.lists(st.tuples(st.sampled_from(list(KINDS)), st.booleans()), min_size=2, max_size=5),
    st.integers(0, 2**31),
)
def test_random_sums_and_products(chain: list[tuple[str, bool]], seed: int) -> None:
    """Random chains of sums and products equal NumPy's."""
    with jax.enable_x64(True):
        total, matrix = example(chain[0][0], SQUARE, seed)
        for i, (kind, adds) in enumerate(chain[1:]):
            op, dense = example(kind, SQUARE, seed + i + 1)
            total = add(total, op) if adds else multiply(total, op)
            matrix = matrix + dense if adds else matrix @ dense
        scale = max(1.0, float(np.abs(matrix).max()))
        np.testing.assert_allclose(total.dense() / scale, matrix / scale, rtol=0, atol=1e-12)
        np.testing.assert_allclose(
            (total @ jnp.ones((12, 1))) / scale, matrix.sum(1, keepdims=True) / scale, atol=1e-12
        )
