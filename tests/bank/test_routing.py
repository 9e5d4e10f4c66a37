"""What rows select from stacks: slots or strengths, and the operators there."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxmix.bank.per_row import PerRow
from jaxmix.bank.routing import route, schedules, select, selection
from jaxmix.bank.slots import BROKEN, NOTHING
from jaxmix.bank.stacks import OperatorStack
from jaxmix.operators import Diagonal, Identity, LowRank, Zero

from ..uncompiled import uncompiled

# Two stacks: member 3 owns a slot of both, and its operator in the second one is broken.
OWNERS = jnp.array([[0, 3, -1], [3, -1, -1]], jnp.int32)
BAD = jnp.array([[False, False, False], [True, False, False]])


def stack_of(d: jax.Array, row: int = 0, axis: int = 0) -> OperatorStack:
    slots = d.shape[axis]
    return OperatorStack(Diagonal(d), jnp.zeros(slots, bool), slots, axis, row)


def test_numbers_select_the_slots_of_their_member() -> None:
    """The base and members without an operator select nothing; -1 is no owner of free slots."""
    with uncompiled():
        routes = route(OWNERS, BAD, jnp.array([3, 0, -1, 7], jnp.int32))
    assert routes.strengths is None and routes.slot is not None
    assert routes.slot.tolist() == [
        [1, BROKEN],
        [0, NOTHING],
        [NOTHING, NOTHING],
        [NOTHING, NOTHING],
    ]


def test_strengths_are_those_of_the_owners() -> None:
    """Free slots have zero; a broken operator gives NaN unless its strength is zero."""
    with uncompiled():
        pick = jnp.array([[0.5, 9, 9, -2], [1, 9, 9, 0]], jnp.float32)
        routes = route(OWNERS, BAD, pick)
        assert routes.slot is None and routes.strengths is not None
        expected = [[[0.5, -2, 0], [np.nan, 0, 0]], [[1, 0, 0], [0, 0, 0]]]
        np.testing.assert_array_equal(routes.strengths, expected)
        one_row = jax.tree.map(lambda x: x[0], routes)
        own = selection(stack_of(jnp.ones((1, 4)), row=1), one_row).strengths
        assert own is not None and own.shape == (1,)
        assert schedules([stack_of(jnp.ones((3, 4)))], routes, 1) is None


def test_a_side_without_stacks_changes_nothing() -> None:
    with uncompiled():
        routes = jax.tree.map(lambda x: x[0], route(OWNERS, BAD, jnp.array([3], jnp.int32)))
    left = select((), routes, (4, 4), True, 1)
    shift = select((), routes, (4, 6), False, 1)
    assert isinstance(left, Identity) and left.shape == (4, 4)
    assert isinstance(shift, Zero) and shift.shape == (4, 6)


def test_diagonals_of_several_stacks_become_one_vector() -> None:
    """Of at most one stack that the row selects from, also with an axis of layers."""
    first, second = jnp.array([[2.0, 3.0], [4.0, 5.0]]), jnp.array([[6.0, 7.0]])
    with uncompiled():
        for member, expected in ((3, [[4, 5]]), (0, [[2, 3]]), (-1, [[1, 1]])):
            pick = jnp.array([member], jnp.int32)
            routes = jax.tree.map(lambda x: x[0], route(OWNERS[:1], BAD[:1], pick))
            flat = select((stack_of(first),), routes, (2, 2), True, 1)
            layers = select((stack_of(first[None], axis=1),), routes, (2, 2), True, 1)
            assert isinstance(flat, Diagonal) and isinstance(layers, Diagonal)
            assert [flat.d.tolist()] == layers.d.tolist() == expected
        owners = jnp.array([[0, 3], [5, -1]], jnp.int32)
        routes = jax.tree.map(
            lambda x: x[0], route(owners, jnp.zeros((2, 2), bool), jnp.array([5], jnp.int32))
        )
        both = select((stack_of(first), stack_of(second, 1)), routes, (2, 2), True, 1)
        assert isinstance(both, Diagonal) and both.d.tolist() == [6, 7]


def test_other_operators_are_selected_when_they_are_used() -> None:
    """Without a diagonal everywhere, the stacks stay whole."""
    stack = OperatorStack(
        LowRank(jnp.ones((3, 2, 1)), jnp.ones((3, 1, 2))), jnp.zeros(3, bool), 3, 0, 0
    )
    with uncompiled():
        routes = jax.tree.map(lambda x: x[0], route(OWNERS, BAD, jnp.array([0], jnp.int32)))
        operator = select((stack,), routes, (2, 2), False, 1)
        assert isinstance(operator, PerRow) and operator.stacks[0] is stack.stack
        np.testing.assert_array_equal(operator.dense(), np.ones((2, 2)))
