"""Stacked operators: each entry equals the operator that was stacked, whatever the others are."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix.operators import (
    BlockDiagonal,
    Diagonal,
    Identity,
    Kronecker,
    LowRank,
    Operator,
    Permutation,
    Product,
    Sum,
    Zero,
    add,
    stack_factors,
    stack_terms,
)

from .kinds import KINDS, SQUARE, SQUARE_KINDS, WIDE, close, example

pytestmark = pytest.mark.usefixtures("no_compiling")


def entries(stack: Operator) -> Any:
    return jax.vmap(lambda operator: operator.dense() + jnp.zeros(operator.shape))(stack)


def check(make: Callable[[Sequence[Operator]], Operator], operators: Sequence[Operator]) -> None:
    stack = make(operators)
    count = len(operators)
    if not jax.tree.leaves(stack):
        close(stack.dense(), operators[0].dense())
        return
    assert all(leaf.shape[0] == count for leaf in jax.tree.leaves(stack))
    for entry, operator in zip(entries(stack), operators, strict=True):
        close(entry, operator.dense())


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_terms_are_stacked(kind: str) -> None:
    """Every kind stacks with others, with sums, and with absent terms."""
    with jax.enable_x64(True):
        shape = SQUARE if kind in SQUARE_KINDS else WIDE
        left, right = example(kind, shape)[0], example("low_rank", shape)[0]
        wider = LowRank(jnp.ones((shape[0], 5)), jnp.ones((5, shape[1])))
        check(stack_terms, [Zero(*shape), left, add(left, right), wider, left])


@pytest.mark.parametrize("kind", sorted(SQUARE_KINDS))
def test_factors_are_stacked(kind: str) -> None:
    """Every square kind stacks with other factors; an absent factor is the identity."""
    with jax.enable_x64(True):
        operator = example(kind, SQUARE)[0]
        scaled = Diagonal(jnp.arange(1.0, 13.0))
        permuted = Permutation(jnp.arange(12)[::-1])
        reflected = Sum((Identity(12), LowRank(jnp.ones((12, 2)), jnp.ones((2, 12)))))
        lower_rank = Sum((Identity(12), LowRank(jnp.ones((12, 1)), jnp.ones((1, 12)))))
        operators = [
            Identity(12),
            operator,
            scaled,
            Product(permuted, scaled),
            reflected,
            lower_rank,
        ]
        check(stack_factors, operators)


def test_two_terms_of_one_structure() -> None:
    """The terms do not merge, and each entry may have none, one or both."""
    first, second = (Kronecker(s * jnp.ones((2, 3)), jnp.ones((4, 4))) for s in (1.0, 3.0))
    check(stack_terms, [Sum((first, second)), Zero(8, 12), second, Sum((second, second))])


@pytest.mark.parametrize("is_first", [True, False])
def test_absent_sum_is_one_identity(is_first: bool) -> None:
    """An absent sum keeps only its term without numbers, the identity, at any position."""
    blocks = BlockDiagonal(jnp.arange(8.0).reshape(2, 2, 2), 1)
    terms: tuple[Operator, ...] = (Permutation(jnp.array([1, 0, 3, 2])), blocks)
    check(stack_factors, [Sum(terms if is_first else terms[::-1]), Identity(4)])


def test_ranks_are_padded() -> None:
    stack = stack_terms([LowRank(jnp.ones((3, r)), jnp.ones((r, 2))) for r in (1, 4, 2)])
    assert isinstance(stack, LowRank) and stack.a.shape == (3, 4, 2)
    np.testing.assert_array_equal(entries(stack)[:, 0, 0], [1, 4, 2])


def test_stack_of_absent_terms() -> None:
    assert isinstance(stack_terms([Zero(2, 3)] * 2), Zero)
    assert isinstance(stack_factors([Identity(2)] * 3), Identity)
