"""Terms added to a matrix in the forms of accelerators, against NumPy in float64."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix.operators import Dense, Hadamard, Kronecker, LowRank, Operator, Sum, Zero, adding
from jaxmix.operators.adding import added, added_in_one_pass, common_rows, plus, prepared
from jaxmix.operators.backends import GPU, TPU, Backend

from ..uncompiled import uncompiled
from .kinds import close, low_rank

ROWS, COLS = 16, 6
RNG = np.random.default_rng(0)


def normal(*shape: int) -> Any:
    return jnp.asarray(RNG.normal(size=shape))


def low(rank: int) -> LowRank:
    operator, _ = low_rank(rank)(RNG, ROWS, COLS)
    assert isinstance(operator, LowRank)
    return operator


def kronecker() -> Kronecker:
    return Kronecker(normal(2, 3), normal(8, 2))


def all_kinds() -> Operator:
    products = kronecker(), Hadamard(low(2), low(3))
    return Sum((low(2), *products, Dense(normal(ROWS, COLS)), low(1)))


DELTAS: dict[str, Callable[[], Operator]] = {
    "low ranks": lambda: Sum((low(2), low(3))),
    "Kronecker": kronecker,
    "all kinds": all_kinds,
    "zero": lambda: Zero(ROWS, COLS),
}


def test_low_ranks_are_joined_in_order() -> None:
    """Zeros are left out, and other terms follow unchanged."""
    first, second, dense = low(2), low(3), Dense(normal(ROWS, COLS))
    joined, *rest = prepared(GPU, Sum((first, Zero(ROWS, COLS), dense, second)))
    assert isinstance(joined, LowRank) and rest == [dense]
    close(joined.b, np.concatenate([first.b, second.b], 1))
    close(joined.a, np.concatenate([first.a, second.a], 0))
    assert prepared(GPU, first) == (first,)
    assert prepared(GPU, Zero(ROWS, COLS)) == ()


def test_small_hadamard_products_join_the_low_rank_on_a_tpu() -> None:
    """A GPU keeps them, since its sums over a short axis are cheaper."""
    term = Sum((low(1), Hadamard(low(2), low(3))))
    (joined,) = prepared(TPU, term)
    assert isinstance(joined, LowRank) and joined.rank == 1 + 2 * 3
    assert [type(part) for part in prepared(GPU, term)] == [LowRank, Hadamard]


@pytest.mark.parametrize(
    ("heights", "expected"),
    [((8,), 8), ((16, 16), 16), ((8, 16), None), ((4,), None), ((12,), None), ((), None)],
)
def test_common_rows_fill_tiles(heights: tuple[int, ...], expected: int | None) -> None:
    """Products of different sizes have no common view; other structures do not matter."""
    products = [Kronecker(jnp.ones((2, 1)), jnp.ones((rows, 1))) for rows in heights]
    assert common_rows([low(2), *products, Zero(1, 1)]) == expected


@pytest.mark.parametrize("name", DELTAS)
@pytest.mark.parametrize("backend", [TPU, GPU], ids=["tpu", "gpu"])
def test_one_pass_is_the_sum(backend: Backend, name: str) -> None:
    """In a view of three axes too, which a matrix that is no leaf does not get."""
    x, delta = normal(ROWS, COLS), DELTAS[name]()
    expected = np.asarray(x) + np.asarray(delta.dense())
    with uncompiled():
        for is_leaf, is_viewed in ((True, True), (True, False), (False, False)):
            how = dict(is_leaf=is_leaf, is_viewed=is_viewed)
            close(added_in_one_pass(backend, x, delta, x.dtype, **how), expected)
        close(plus(backend, x, prepared(backend, delta)), expected)


def test_rows_that_fill_no_tile_have_no_view() -> None:
    x, delta = normal(9, 4), LowRank(normal(9, 2), normal(2, 4))
    total = added_in_one_pass(TPU, x, delta, x.dtype, is_leaf=True, is_viewed=True)
    close(total, np.asarray(x) + np.asarray(delta.dense()))


def test_narrow_leaf_is_rounded_once() -> None:
    """The terms are added in float32, and only the sum is rounded."""
    leaf = normal(ROWS, COLS).astype(jnp.bfloat16)
    delta = jax.tree.map(lambda x: x.astype(jnp.float32), all_kinds())
    exact = np.asarray(leaf, np.float64) + np.asarray(delta.dense(), np.float64)
    total = added_in_one_pass(GPU, leaf, delta, jnp.bfloat16, is_leaf=True)
    assert total.dtype == jnp.bfloat16
    error = np.abs(np.asarray(total, np.float64) - exact) / np.abs(exact)
    assert error.max() < 2.0**-8


@pytest.mark.parametrize("is_transposed", [False, True])
@pytest.mark.parametrize("stored", [None, jnp.float64])
def test_transposed_leaf_is_added_in_its_own_order(
    stored: Any, is_transposed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a transpose, the leaf behind it is passed over, without a change of the sum."""
    seen: list[tuple[int, ...]] = []

    def one_pass(backend: Backend, x: Any, *args: Any, **how: Any) -> Any:
        seen.append(x.shape)
        return added_in_one_pass(backend, x, *args, **how)

    monkeypatch.setattr(adding, "by_platform", lambda cpu, form, *xs: form(TPU, *xs))
    monkeypatch.setattr(adding, "added_in_one_pass", one_pass)
    x, delta = normal(ROWS, COLS), all_kinds()
    with uncompiled():
        total = added(x, delta, stored=stored, is_transposed=is_transposed)
    close(total, np.asarray(x) + np.asarray(delta.dense()))
    assert seen == [(COLS, ROWS) if is_transposed else (ROWS, COLS)]
