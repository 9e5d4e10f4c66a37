"""Operators padded to powers of two: equal matrices, and one key for similar sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix.bank.padding import padded_factors, padded_terms, structure_key
from jaxmix.operators import Hadamard, Identity, LowRank, Operator, Permutation, Sparse, Sum, Zero

from ..uncompiled import uncompiled


def low_rank(rank: int, seed: int = 0) -> LowRank:
    rng = np.random.default_rng([seed, rank])
    return LowRank(jnp.asarray(rng.normal(size=(5, rank))), jnp.asarray(rng.normal(size=(rank, 7))))


def sparse(count: int) -> Sparse:
    rng = np.random.default_rng(count)
    at = np.stack([rng.integers(0, 5, count), rng.integers(0, 7, count)]).astype(np.int32)
    return Sparse(jnp.asarray(rng.normal(size=count)), jnp.asarray(at), 5, 7)


@pytest.mark.parametrize(("rank", "padded"), [(1, 1), (2, 2), (3, 4), (4, 4), (5, 8)])
def test_ranks_become_powers_of_two(rank: int, padded: int) -> None:
    with jax.enable_x64(True), uncompiled():
        (term,) = padded_terms(low_rank(rank))
        assert isinstance(term, LowRank) and term.rank == padded
        np.testing.assert_allclose(term.dense(), low_rank(rank).dense(), rtol=1e-12)


@pytest.mark.parametrize(
    "delta",
    [
        sparse(3),
        Sum((low_rank(3), sparse(6))),
        Hadamard(low_rank(2, 1), low_rank(3, 2)),
        Hadamard(low_rank(7, 1), low_rank(7, 2)),
        Identity(5),
        Permutation(jnp.asarray([2, 0, 1])),
    ],
    ids=lambda delta: type(delta).__name__,
)
def test_padded_terms_have_the_same_sum_and_hold_values(delta: Operator) -> None:
    """Each term has an array, which a slot of zeros can replace."""
    with uncompiled():
        terms = padded_terms(delta)
        np.testing.assert_allclose(sum(x.dense() for x in terms), delta.dense(), atol=1e-5)
        for term in terms:
            floats = [x for x in jax.tree.leaves(term) if x.dtype.kind == "f"]
            assert floats


def test_nothing_needs_no_stack() -> None:
    """A Δ of zero has no terms, and an identity as a factor none either."""
    assert padded_terms(Zero(5, 7)) == [] and padded_factors(Identity(5)) == []


def test_only_similar_operators_share_a_stack() -> None:
    """Padded ranks, but neither other shapes nor other dtypes; the axis of slots has any size."""
    with uncompiled():
        three, four, five = (padded_terms(low_rank(rank))[0] for rank in (3, 4, 5))
        assert structure_key(three) == structure_key(four) != structure_key(five)
        half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), four)
        assert structure_key(half) != structure_key(four)
        assert structure_key(three.T) != structure_key(three)
        stack = jax.tree.map(lambda x: jnp.stack([x, x], axis=1), four)
        assert structure_key(stack, 1) == structure_key(four) != structure_key(stack)
