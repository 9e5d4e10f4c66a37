"""Stacks of members' operators, their owners, and members that enter free slots."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmix.bank.padding import structure_key
from jaxmix.bank.slots import entry
from jaxmix.bank.stacks import broken_table, build_stacks, insert, owner_table
from jaxmix.operators import Diagonal, LowRank

from ..uncompiled import uncompiled


def low_rank(value: float, rank: int = 2) -> LowRank:
    b = jnp.full((3, rank), float(value)).at[1, 0].add(1)
    return LowRank(b, jnp.full((rank, 4), 0.5))


def of(number: int, *items: Any) -> tuple[list[int], list[Any]]:
    """A group of a single member, whose operators have an axis of members."""
    return [number], [jax.tree.map(lambda x: x[None], item) for item in items]


def test_equal_structures_share_a_stack_and_repeated_ones_do_not() -> None:
    """A member with two low ranks of one size has a slot in two stacks."""
    with uncompiled():
        groups = [of(0, low_rank(1), low_rank(2)), of(4, low_rank(3)), of(5, low_rank(4, 1))]
        stacks, owners = build_stacks(groups, lambda count: count + 1, 0)
    assert owners == [[0, 4], [0], [5]]
    assert [(stack.slots, stack.row) for stack in stacks] == [(3, 0), (2, 1), (2, 2)]
    np.testing.assert_array_equal(entry(stacks[0].stack, np.int32(1)).b, low_rank(3).b)
    assert not entry(stacks[0].stack, np.int32(2)).b.any()
    assert stacks[0].key == structure_key(low_rank(9)) != stacks[2].key
    table = owner_table(stacks, owners)
    assert table.tolist() == [[0, 4, -1], [0, -1, -1], [5, -1, -1]]


def test_operators_with_inf_hold_zeros_and_are_flagged() -> None:
    """Diagonals and arrays are kept, since each row selects its own."""
    with uncompiled():
        bad = low_rank(1).b.at[0, 1].set(np.nan)
        groups = [of(0, low_rank(1)), of(1, LowRank(bad, low_rank(1).a), Diagonal(bad[0]))]
        stacks, _ = build_stacks(groups, lambda count: count, 0)
        assert broken_table(stacks).tolist() == [[False, True], [False, False]]
    (low, diagonal) = (stack.stack for stack in stacks)
    assert not entry(low, np.int32(1)).b.any() and not entry(low, np.int32(1)).a.any()
    np.testing.assert_array_equal(entry(low, np.int32(0)).b, low_rank(1).b)
    assert np.isnan(diagonal.d[0, 1])


def test_a_member_enters_the_first_free_slot_until_none_is_left() -> None:
    """A member that does not fit changes neither the stacks nor, by itself, the table."""
    with uncompiled():
        stacks, owners = build_stacks([of(0, low_rank(1)), of(1, low_rank(2))], lambda _: 3, 0)
        table = owner_table(stacks, owners)
        table[table == 0] = -1  # its member was removed
        # Two slots are free, but two operators of one member need two stacks.
        assert insert(stacks, table.copy(), 8, [low_rank(6), low_rank(6)]) is None
        entered = insert(stacks, table, 7, [low_rank(5)])
        assert entered is not None and table.tolist() == [[7, 1, -1]]
        np.testing.assert_array_equal(entry(entered[0].stack, np.int32(0)).b, low_rank(5).b)
        np.testing.assert_array_equal(entry(entered[0].stack, np.int32(1)).b, low_rank(2).b)
        assert insert(entered, table, 8, [low_rank(6, 1)]) is None
        full = insert(entered, table, 8, [low_rank(np.inf)])
        assert full is not None and table.tolist() == [[7, 1, 8]]
        assert full[0].broken.tolist() == [False, False, True]
        assert insert(full, table, 9, [low_rank(6)]) is None


def test_a_bank_without_stacks_has_empty_tables() -> None:
    assert owner_table([], []).shape == broken_table([]).shape == (0, 0)
