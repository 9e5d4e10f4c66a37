"""Slots of stacks: the operator in one of them, and their number."""

import jax.numpy as jnp
import numpy as np

from jaxmix.bank.slots import BROKEN, NOTHING, count_slots, entry
from jaxmix.operators import Identity, LowRank


def test_an_entry_has_no_axis_of_slots() -> None:
    stack = LowRank(jnp.arange(12.0).reshape(3, 4, 1), jnp.arange(6.0).reshape(3, 1, 2))
    second = entry(stack, np.int32(1))
    assert second.shape == (4, 2) and count_slots(stack) == 3
    np.testing.assert_array_equal(second.b, stack.b[1])
    np.testing.assert_array_equal(second.a, stack.a[1])


def test_a_stack_without_arrays_has_one_slot() -> None:
    assert count_slots(Identity(3)) == 1 and isinstance(entry(Identity(3), np.int32(0)), Identity)


def test_a_broken_slot_wins_over_nothing() -> None:
    """`route` takes the maximum over slots, and both must lie below the first slot."""
    assert NOTHING < BROKEN < 0
