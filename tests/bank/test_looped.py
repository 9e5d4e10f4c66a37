"""The schedule of rows on CPU: which go through the batched product and which through the loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix.bank.looped import no_schedule, schedule
from jaxmix.operators import Diagonal, Operator, Sparse

from ..uncompiled import uncompiled


def dense(slots: int) -> Diagonal:
    return Diagonal(jnp.ones((slots, 4)))


def sparse(slots: int) -> Sparse:
    return Sparse(jnp.ones((slots, 2)), jnp.zeros((slots, 2, 2), jnp.int32), 4, 4)


STACKS: tuple[Operator, ...] = (dense(3), sparse(3), dense(1), dense(2))
# By stack, the slots of seven rows; negative ones select nothing.
SLOTS = np.array(
    [
        [2, 0, 0, 1, -1, 0, 2],
        [2, 0, 0, 1, -2, 0, 2],
        [0, 0, -1, -1, -1, 0, 0],
        [-1, -1, -1, -1, 1, -1, -2],
    ],
    np.int32,
).T


@pytest.mark.parametrize("rows_per_slot", [1, 2, 9])
def test_each_row_goes_one_way(rows_per_slot: int) -> None:
    """Each row that selects a slot has a place in the batch of this slot, or is in the loop."""
    with uncompiled():
        found = schedule(STACKS, rows_per_slot, jnp.asarray(SLOTS))
    for i, slots in enumerate(SLOTS.T):
        count, place = int(found.count[i]), np.asarray(found.place[i])
        looped = dict(zip(found.order[i, :count].tolist(), found.slot[i].tolist(), strict=False))
        batched = {row: int(at) // rows_per_slot for row, at in enumerate(place) if at >= 0}
        assert not looped.keys() & batched.keys()
        wanted = {row: int(slot) for row, slot in enumerate(slots) if slot >= 0}
        assert looped | batched == wanted
        for row in batched:
            assert int(found.batch[i, place[row]]) == row
        assert bool(batched) == bool(found.is_batched[i])


def test_only_full_stacks_with_a_batched_form_are_batched() -> None:
    """At least half of the places are taken; sparse operators and single slots always loop."""
    with uncompiled():
        assert schedule(STACKS, 1, jnp.asarray(SLOTS)).is_batched.tolist() == [1, 0, 0, 1]
        assert schedule(STACKS, 4, jnp.asarray(SLOTS)).is_batched.tolist() == [1, 0, 0, 0]
        assert schedule(STACKS, 5, jnp.asarray(SLOTS)).is_batched.tolist() == [0, 0, 0, 0]


def test_programs_without_loops_have_a_schedule_of_the_same_shapes() -> None:
    """Both are branches of one program."""
    with uncompiled():
        zeros = no_schedule(STACKS, 2, jnp.asarray(SLOTS))
        found = schedule(STACKS, 2, jnp.asarray(SLOTS))
    assert jax.tree.structure(zeros) == jax.tree.structure(found)
    pairs = zip(jax.tree.leaves(zeros), jax.tree.leaves(found), strict=True)
    assert all((x.shape, x.dtype) == (y.shape, y.dtype) and not x.any() for x, y in pairs)
