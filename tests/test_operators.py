"""The laws of operators: each alone, and every pair folded, against dense arithmetic in NumPy."""

from collections.abc import Callable, Iterator
from dataclasses import FrozenInstanceError, fields
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmix import operators
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

Made = tuple[Operator, np.ndarray]
Maker = Callable[[np.random.Generator, int, int], Made]

SQUARE = (12, 12)
WIDE = (8, 12)
TALL = (12, 8)
SHAPES = (SQUARE, WIDE, TALL)
SLICES = (
    slice(None),
    slice(2, 7),
    slice(4, 8),
    slice(5, 6),
    slice(1, None, 3),
    slice(None, None, -1),
    slice(7, 0, -2),
    slice(-3, None),
    slice(3, 3),
)


def _zero(rng: np.random.Generator, rows: int, cols: int) -> Made:
    return Zero(rows, cols), np.zeros((rows, cols))


def _identity(rng: np.random.Generator, rows: int, cols: int) -> Made:
    return Identity(rows), np.eye(rows)


def _diagonal(rng: np.random.Generator, rows: int, cols: int) -> Made:
    d = rng.normal(size=rows)
    return Diagonal(jnp.asarray(d)), np.diag(d)


def _blocks(size: int, shared: bool = False) -> Maker:
    def make(rng: np.random.Generator, rows: int, cols: int) -> Made:
        count = rows // size
        blocks = rng.normal(size=(1 if shared else count, size, size))
        dense = np.zeros((rows, rows))
        for i in range(count):
            at = slice(i * size, (i + 1) * size)
            dense[at, at] = blocks[i % len(blocks)]
        return BlockDiagonal(jnp.asarray(blocks), count // len(blocks)), dense

    return make


def _low_rank(rank: int) -> Maker:
    def make(rng: np.random.Generator, rows: int, cols: int) -> Made:
        b, a = rng.normal(size=(rows, rank)), rng.normal(size=(rank, cols))
        return LowRank(jnp.asarray(b), jnp.asarray(a)), b @ a

    return make


def _hadamard(rng: np.random.Generator, rows: int, cols: int) -> Made:
    (left, one), (right, two) = (_low_rank(r)(rng, rows, cols) for r in (2, 3))
    assert isinstance(left, LowRank) and isinstance(right, LowRank)
    return Hadamard(left, right), one * two


def _kronecker(rows_in: int, cols_in: int) -> Maker:
    def make(rng: np.random.Generator, rows: int, cols: int) -> Made:
        x, y = rng.normal(size=(rows_in, cols_in)), None
        y = rng.normal(size=(rows // rows_in, cols // cols_in))
        return Kronecker(jnp.asarray(x), jnp.asarray(y)), np.kron(x, y)

    return make


def _sparse(rng: np.random.Generator, rows: int, cols: int) -> Made:
    values = rng.normal(size=9)
    indices = np.stack([rng.integers(0, rows, 9), rng.integers(0, cols, 9)])
    indices[:, 3] = indices[:, 5]
    dense = np.zeros((rows, cols))
    np.add.at(dense, tuple(indices), values)
    places = jnp.asarray(indices, jnp.int32)
    return Sparse(jnp.asarray(values), places, rows, cols), dense


def _dense(rng: np.random.Generator, rows: int, cols: int) -> Made:
    matrix = rng.normal(size=(rows, cols))
    return Dense(jnp.asarray(matrix)), matrix


def _sum(rng: np.random.Generator, rows: int, cols: int) -> Made:
    (x, one), (y, two) = _hadamard(rng, rows, cols), _sparse(rng, rows, cols)
    return Sum((x, y)), one + two


def _product(first: Maker, second: Maker, inner: int | None = None) -> Maker:
    def make(rng: np.random.Generator, rows: int, cols: int) -> Made:
        n = rows if inner is None else inner
        (x, one), (y, two) = first(rng, rows, n), second(rng, n, cols)
        return Product(x, y), one @ two

    return make


SQUARE_KINDS: dict[str, Maker] = {
    "identity": _identity,
    "diagonal": _diagonal,
    "blocks": _blocks(3),
    "blocks_large": _blocks(6),
    "blocks_other": _blocks(4),
    "blocks_shared": _blocks(3, shared=True),
}
KINDS: dict[str, Maker] = {
    "zero": _zero,
    **SQUARE_KINDS,
    "low_rank": _low_rank(2),
    "low_rank_other": _low_rank(3),
    "hadamard": _hadamard,
    "kronecker": _kronecker(2, 4),
    "kronecker_other": _kronecker(4, 2),
    "sparse": _sparse,
    "dense": _dense,
    "sum": _sum,
    "product": _product(_blocks(4), _kronecker(2, 2)),
    "product_other": _product(_kronecker(2, 2), _sparse, inner=20),
}
# Every type is among the kinds; a new one must join them.
TYPES = {getattr(operators, name) for name in operators.__all__ if name[0].isupper()} - {Operator}


def shapes_of(kind: str) -> tuple[tuple[int, int], ...]:
    """The shapes that a kind is made in."""
    return (SQUARE,) if kind in SQUARE_KINDS else SHAPES


CASES = [(kind, shape) for kind in KINDS for shape in shapes_of(kind)]
each = pytest.mark.parametrize(("kind", "shape"), CASES, ids=lambda value: str(value))


def made(kind: str, shape: tuple[int, int], seed: int = 0) -> Made:
    """An operator and the matrix that it is, in float64."""
    return KINDS[kind](np.random.default_rng([seed, *map(ord, kind)]), *shape)


def cast(op: Any, dtype: Any) -> Any:
    """The same in another dtype."""
    floats = (jnp.float32, jnp.float64)
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if leaf.dtype in floats else leaf, op)


def close(found: Any, expected: Any) -> None:
    """Equal to float64 noise, and in shape."""
    assert found.shape == expected.shape
    np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-12, atol=1e-12)


def parts_of(op: Operator) -> set[type]:
    """The types of which an operator is made, its own too."""
    inner = [getattr(op, f.name) for f in fields(op)]  # pyright: ignore[reportArgumentType]
    flat = [x for part in inner for x in (part if isinstance(part, tuple) else (part,))]
    return {type(op)}.union(*(parts_of(x) for x in flat if isinstance(x, Operator)))


@pytest.fixture(autouse=True)
def x64() -> Iterator[None]:
    """Everything here is compared in float64."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """Compiling is what these tests spend their time on: one function a case, not optimised."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def test_every_type_is_here() -> None:
    assert {type(made(kind, SQUARE)[0]) for kind in KINDS} == TYPES


@each
def test_alone(kind: str, shape: tuple[int, int]) -> None:
    """Dense, transposed, multiplied, scaled and added."""
    op, matrix = made(kind, shape)
    rng = np.random.default_rng(1)
    w, factor = rng.normal(size=shape), jnp.asarray(2.5)
    vectors = [[rng.normal(size=(size, n)) for n in (1, 5, 40)] for size in reversed(shape)]

    @jax.jit
    def found(op: Operator, factor: jax.Array) -> list[jax.Array]:
        products = [
            x @ jnp.asarray(v) for x, vs in zip((op, op.T), vectors, strict=True) for v in vs
        ]
        return [
            op.dense(),
            op.T.dense(),
            op.T.T.dense(),
            op.scaled(factor).dense(),
            op.scaled(-1.5).dense(),
            op.T.scaled(factor) @ jnp.asarray(w),
            op.added_to(jnp.asarray(w)),
            *products,
        ]

    assert op.shape == shape
    assert op.T.shape == shape[::-1]
    assert type(op.T) is type(op)
    expected = [
        matrix,
        matrix.T,
        matrix,
        2.5 * matrix,
        -1.5 * matrix,
        2.5 * matrix.T @ w,
        w + matrix,
    ]
    expected += [m @ v for m, vs in zip((matrix, matrix.T), vectors, strict=True) for v in vs]
    for one, other in zip(found(op, factor), expected, strict=True):
        close(one, other)


@pytest.mark.parametrize("kind", KINDS)
def test_slices(kind: str) -> None:
    """A slice is NumPy's, multiplies and transposes, and is structured where the whole was."""
    shape = shapes_of(kind)[-1]
    op, matrix = made(kind, shape)
    x = np.random.default_rng(3).normal(size=(shape[1], 2))

    @jax.jit
    def found(op: Operator) -> list[jax.Array]:
        made = []
        for part in SLICES:
            rows, cols = op.rows(part), op.cols(part)
            both = rows.cols(part)
            assert [rows.shape, cols.shape, both.shape] == [
                cut.shape for cut in (matrix[part], matrix[:, part], matrix[part][:, part])
            ]
            if Dense not in parts_of(op):
                assert Dense not in parts_of(rows) | parts_of(cols) | parts_of(both)
            made += [
                rows.dense(),
                cols.dense(),
                both.dense(),
                rows @ jnp.asarray(x),
                rows.T @ jnp.ones((rows.shape[0], 1)),
            ]
        return made

    results = iter(found(op))
    for part in SLICES:
        cut = matrix[part]
        for expected in (cut, matrix[:, part], cut[:, part], cut @ x, cut.sum(0)[:, None]):
            close(next(results), expected)


@pytest.mark.parametrize(
    ("kind", "part", "type_", "numbers"),
    [
        ("low_rank", slice(2, 7), LowRank, 5 * 2 + 2 * 12),
        ("hadamard", slice(1, None, 3), Hadamard, 4 * 5 + 5 * 12),
        ("kronecker", slice(6, 12), Kronecker, 1 * 4 + 6 * 3),  # whole rows of X
        ("kronecker", slice(7, 10), Kronecker, 1 * 4 + 3 * 3),  # inside one row of X
        ("blocks", slice(3, 9), Product, 2 * 9 + 6 * 3),  # two blocks, and where they stand
        ("diagonal", slice(2, 7), Sparse, 5 * 3),
        ("identity", slice(2, 7), Sparse, 5 * 3),
        ("zero", slice(2, 7), Zero, 0),
        ("blocks", slice(4, 4), Zero, 0),
        ("kronecker", slice(4, 4), Zero, 0),
    ],
)
def test_slices_hold_few_numbers(kind: str, part: slice, type_: type, numbers: int) -> None:
    sliced = made(kind, SQUARE)[0].rows(part)
    assert type(sliced) is type_
    assert sum(leaf.size for leaf in jax.tree.leaves(sliced)) == numbers


@pytest.mark.parametrize("shape", SHAPES[:2], ids=str)
def test_add_agrees_with_dense(shape: tuple[int, int]) -> None:
    """Every pair of kinds."""
    kinds = [kind for kind in KINDS if shape in shapes_of(kind)]
    pairs = [(made(x, shape, 1), made(y, shape, 2)) for x, y in product(kinds, repeat=2)]

    @jax.jit
    def found(pairs: list[tuple[Operator, Operator]]) -> list[jax.Array]:
        totals = [add(x, y) for x, y in pairs]
        for (x, y), total in zip(pairs, totals, strict=True):
            assert total.flops() <= x.flops() + y.added_flops()
            assert Dense in parts_of(x) | parts_of(y) or Dense not in parts_of(total)
        return [total.dense() for total in totals]

    for total, ((_, x), (_, y)) in zip(found([(x[0], y[0]) for x, y in pairs]), pairs, strict=True):
        close(total, x + y)


@pytest.mark.parametrize(
    ("outer", "inner"), [(WIDE, SQUARE), (SQUARE, TALL), (SQUARE, SQUARE)], ids=str
)
def test_multiply_agrees_with_dense(outer: tuple[int, int], inner: tuple[int, int]) -> None:
    """Every pair of kinds; on two squares those that have no other shape."""
    both_square = outer == inner == SQUARE
    kinds = list(SQUARE_KINDS if both_square else KINDS)
    firsts = [made(kind, outer, 1) for kind in kinds if outer in shapes_of(kind)]
    seconds = [made(kind, inner, 2) for kind in kinds if inner in shapes_of(kind)]
    pairs = list(product(firsts, seconds))

    @jax.jit
    def found(pairs: list[tuple[Operator, Operator]]) -> list[jax.Array]:
        folded = [multiply(x, y) for x, y in pairs]
        for (x, y), one in zip(pairs, folded, strict=True):
            assert one.flops() <= Product(x, y).flops()
            assert Dense in parts_of(x) | parts_of(y) or Dense not in parts_of(one)
        return [one.dense() for one in folded]

    for one, ((_, x), (_, y)) in zip(found([(x[0], y[0]) for x, y in pairs]), pairs, strict=True):
        close(one, x @ y)


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
def test_what_a_sum_becomes(pair: tuple[str, str], type_: type) -> None:
    assert type(add(*(made(kind, SQUARE)[0] for kind in pair))) is type_


@pytest.mark.parametrize(("pair", "type_"), MULTIPLIES.items(), ids=str)
def test_what_a_product_becomes(pair: tuple[str, str], type_: type) -> None:
    assert type(multiply(*(made(kind, SQUARE)[0] for kind in pair))) is type_


def test_ranks_and_copies_are_kept_small() -> None:
    """A product of low ranks has the smaller rank, shared blocks stay shared, sums merge inside."""
    two, three = made("low_rank", SQUARE)[0], made("low_rank_other", SQUARE)[0]
    for folded in (multiply(two, three), multiply(three, two)):
        assert isinstance(folded, LowRank) and folded.rank == 2
    shared = made("blocks_shared", SQUARE)[0]
    folded = multiply(shared, shared)
    assert isinstance(folded, BlockDiagonal) and folded.copies == 4
    both = add(add(two, made("sparse", SQUARE)[0]), add(made("hadamard", SQUARE)[0], three))
    assert isinstance(both, Sum)
    assert [type(term) for term in both.terms] == [LowRank, Sparse, Hadamard]
    merged = both.terms[0]
    assert isinstance(merged, LowRank) and merged.rank == 5


@each
def test_costs_are_counts(kind: str, shape: tuple[int, int]) -> None:
    op, _ = made(kind, shape)
    for count in (op.flops(), op.added_flops(), op.matmul_flops(1), op.matmul_flops(7)):
        assert isinstance(count, int) and count >= 0
    assert op.T.flops() == op.flops()


@pytest.mark.parametrize(
    "kind", ["low_rank", "hadamard", "kronecker", "kronecker_other", "dense", "product"]
)
@pytest.mark.parametrize("n", [1, 40])
def test_costs_are_what_xla_counts(kind: str, n: int) -> None:
    """XLA's own count of what the compiled functions do, but for what it saves by fusing."""
    op, _ = made(kind, WIDE)

    def counted(function: Callable[..., Any], *args: Any) -> float:
        analysis = jax.jit(function).lower(*args).compile().cost_analysis()
        assert analysis is not None
        return analysis["flops"]

    x = jnp.ones((WIDE[1], n))
    found = counted(lambda o, v: o @ v, op, x)
    assert 0.8 * op.matmul_flops(n) <= found <= 1.2 * op.matmul_flops(n)
    if kind != "dense":
        assert 0.8 * op.flops() <= counted(lambda o: o.dense(), op) <= 1.2 * op.flops()


def test_folding_low_ranks_saves_work() -> None:
    x, y = made("low_rank", WIDE)[0], made("low_rank_other", WIDE)[0]
    assert add(x, y).flops() == x.flops() + y.flops() < Sum((x, y)).flops()
    turn = made("blocks", SQUARE)[0]
    assert multiply(x, turn).flops() == x.flops() < Product(x, turn).flops()


def test_hadamard_multiplies_the_cheaper_way() -> None:
    """By Khatri-Rao for few columns of large matrices, densely for many ranks of small ones."""
    rng = np.random.default_rng(0)

    def hadamard(size: int, rank: int) -> Hadamard:
        one, two = (_low_rank(rank)(rng, size, size)[0] for _ in range(2))
        assert isinstance(one, LowRank) and isinstance(two, LowRank)
        return Hadamard(one, two)

    def products(op: Hadamard) -> set[tuple[int, ...]]:
        jaxpr = jax.make_jaxpr(lambda o, v: o @ v)(op, jnp.ones((op.shape[1], 3)))
        dots = [e for e in jaxpr.eqns if e.primitive.name == "dot_general"]
        return {e.outvars[0].aval.shape for e in dots}

    assert (64, 64) not in products(hadamard(64, 2))
    assert (8, 8) in products(hadamard(8, 6))
    few = hadamard(64, 2)
    close(few.low_rank().dense(), np.asarray(few.dense()))
    assert few.low_rank().rank == 4
    assert few.rows(slice(3, 3)).low_rank().shape == (0, 64)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64, jnp.bfloat16, jnp.float16], ids=str)
def test_dtypes_are_kept(kind: str, dtype: Any) -> None:
    """Under strict promotion; what has no arrays takes the dtype that it meets."""
    op = cast(made(kind, SQUARE)[0], dtype)

    def arrays(op: Operator) -> dict[str, jax.Array]:
        x, part = jnp.ones((12, 3), dtype), slice(1, 6)
        found = {"matmul": op @ x, "transposed": op.T @ x}
        found |= {"added": op.added_to(jnp.ones(SQUARE, dtype)), "dense @": op.dense() @ x}
        for name, one in {"whole": op, "rows": op.rows(part), "cols": op.cols(part)}.items():
            found[name] = one.dense() @ jnp.ones((one.shape[1], 1), dtype)
        if jax.tree.leaves(op):
            found["dense"] = op.dense()
            found["scaled"] = op.scaled(jnp.asarray(2, dtype)).dense()
            found["by a number"] = op.scaled(2.0).dense()
            found["sum"] = add(op, Identity(12)).dense()
            found["product"] = multiply(op.rows(part), op.T).dense()
        return found

    found = {name: one.dtype for name, one in jax.eval_shape(arrays, op).items()}
    assert found == dict.fromkeys(found, dtype)
    if not jax.tree.leaves(op):
        assert op.dense().weak_type


@pytest.mark.parametrize("kind", KINDS)
def test_transforms(kind: str) -> None:
    """Jit, vmap, grad, eval_shape, and a pytree there and back."""
    op, matrix = made(kind, SQUARE)
    x = jnp.asarray(np.random.default_rng(4).normal(size=(12, 3)))
    leaves, treedef = jax.tree.flatten(op)
    assert hash(treedef) == hash(jax.tree.structure(made(kind, SQUARE, seed=9)[0]))
    again = jax.tree.unflatten(treedef, leaves)
    close(jax.jit(lambda o, v: o @ v)(again, x), matrix @ np.asarray(x))
    shaped = jax.eval_shape(lambda o, v: (o.dense(), o @ v, o.rows(slice(0, 5)).dense()), op, x)
    assert [s.shape for s in shaped] == [(12, 12), (12, 3), (5, 12)]
    if not leaves:
        return
    pair = [made(kind, SQUARE, seed)[0] for seed in (5, 6)]
    places = jax.tree.map(lambda a, b: jnp.stack([a, b]), *pair)

    def arrays(op: Operator) -> tuple[jax.Array, ...]:
        return op.dense(), op @ x, op.cols(slice(1, 9, 2)).dense()

    both = jax.jit(jax.vmap(arrays))(places)
    for i, one in enumerate(pair):
        dense = np.asarray(one.dense())
        for found, expected in zip(both, (dense, dense @ x, dense[:, 1:9:2]), strict=True):
            close(found[i], np.asarray(expected))

    @jax.jit
    def loss(numbers: list[jax.Array]) -> jax.Array:
        it = iter(numbers)
        full = [next(it) if leaf.dtype == jnp.float64 else leaf for leaf in leaves]
        return jnp.sum(jnp.sin(jax.tree.unflatten(treedef, full) @ x))

    floats = [leaf for leaf in leaves if leaf.dtype == jnp.float64]
    slopes = jax.jit(jax.grad(loss))(floats)
    step = 1e-6
    for i, slope in enumerate(slopes):
        way = jnp.asarray(np.random.default_rng(i).normal(size=slope.shape))
        there, back = ([*floats[:i], floats[i] + s * way, *floats[i + 1 :]] for s in (step, -step))
        expected = (loss(there) - loss(back)) / (2 * step)
        np.testing.assert_allclose(jnp.vdot(slope, way), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_and_comparable(kind: str) -> None:
    """Nothing can be changed; equality is identity, so that arrays are never compared by chance."""
    op, _ = made(kind, SQUARE)
    with pytest.raises(FrozenInstanceError):
        setattr(op, fields(op)[0].name, None)  # pyright: ignore[reportArgumentType]
    assert op == op and op != made(kind, SQUARE)[0]
    assert len({op, op}) == 1


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ShapeError) as caught:
        add(Zero(2, 3), Zero(3, 2))
    assert str(caught.value) == (
        "add: a matrix (3, 2) on one of (2, 3), expected equal shapes. Are both updates for one "
        "weight?"
    )
    with pytest.raises(ShapeError) as caught:
        multiply(Identity(2), Zero(3, 2))
    assert str(caught.value) == (
        "multiply: a matrix (2, 2) times one of (3, 2), expected equal inner sizes. Are both "
        "updates for one weight?"
    )


def test_an_operator_must_say_all() -> None:
    """A new structure that leaves out a law can't be made."""

    class Half(Operator):
        pass

    with pytest.raises(TypeError, match="abstract"):
        Half()  # pyright: ignore[reportAbstractUsage]


slices = st.builds(
    slice,
    st.none() | st.integers(-14, 14),
    st.none() | st.integers(-14, 14),
    st.none() | st.integers(-3, 3).filter(bool),
)


@settings(max_examples=20)
@given(st.sampled_from(CASES), slices, slices, st.integers(0, 2**31))
def test_any_slice(case: tuple[str, Any], one: slice, two: slice, seed: int) -> None:
    kind, shape = case
    with jax.enable_x64(True):
        op, matrix = made(kind, shape, seed)
        found = jax.jit(lambda op: op.rows(one).cols(two).dense())(op)
        close(found, matrix[one][:, two])


@settings(max_examples=20)
@given(
    st.lists(st.tuples(st.sampled_from(list(KINDS)), st.booleans()), min_size=2, max_size=5),
    st.integers(0, 2**31),
)
def test_any_word(word: list[tuple[str, bool]], seed: int) -> None:
    """Sums and products folded one after another, of any length, whatever they fold to."""
    with jax.enable_x64(True):
        total, matrix = made(word[0][0], SQUARE, seed)
        for i, (kind, adds) in enumerate(word[1:]):
            op, dense = made(kind, SQUARE, seed + i + 1)
            total = add(total, op) if adds else multiply(total, op)
            matrix = matrix + dense if adds else matrix @ dense
        scale = max(1.0, float(np.abs(matrix).max()))
        np.testing.assert_allclose(total.dense() / scale, matrix / scale, rtol=0, atol=1e-12)
        np.testing.assert_allclose(
            (total @ jnp.ones((12, 1))) / scale, matrix.sum(1, keepdims=True) / scale, atol=1e-12
        )
