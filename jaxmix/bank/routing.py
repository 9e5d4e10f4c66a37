"""What each row of a batch selects from the stacks of a bank."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxmix.bank.looped import Schedule, no_schedule, schedule
from jaxmix.bank.per_row import PerRow
from jaxmix.bank.slots import BROKEN, NOTHING, Selection
from jaxmix.bank.stacks import OperatorStack
from jaxmix.operators import Diagonal, Identity, Operator, Zero
from jaxmix.operators.backends import by_platform

__all__ = ["route", "schedules", "select", "selection"]


def route(owners: Array, broken: Array, pick: Array) -> Selection:
    """Returns what every row selects from every stack of a bank, computed once per call.

    Args:
        owners: The table of owners (stacks, slots).
        broken: The table of flags (stacks, slots).
        pick: The number of each row's member (rows,), or a strength for each member (rows,
            members).

    Returns:
        Slots (rows, stacks), or strengths (rows, stacks, slots).
    """
    if jnp.issubdtype(pick.dtype, jnp.floating):
        is_owned = owners >= 0
        strengths = pick.at[:, jnp.maximum(owners, 0)].get(mode="fill", fill_value=np.nan)
        strengths = jnp.where(is_owned[None], strengths, 0)
        nan = jnp.full((), np.nan, strengths.dtype)
        return Selection(strengths=jnp.where(broken[None] & (strengths != 0), nan, strengths))
    # On accelerators each kernel counts. All of this is one, since everything has the shape of
    # the maximum's operand.
    shape = (pick.shape[0], *owners.shape)
    member = jnp.broadcast_to(pick[:, None, None], shape)
    selected = (owners[None] == member) & (member >= 0)
    slot = jax.lax.broadcasted_iota(np.int32, shape, 2)
    found = jnp.where(broken[None], np.int32(BROKEN), slot)
    # A row selects at most one slot of a stack.
    slots = jnp.where(selected, found, np.int32(NOTHING))
    return Selection(jax.lax.reduce(slots, np.int32(NOTHING), jax.lax.max, (2,)))


def schedules(
    stacks: Sequence[OperatorStack], routes: Selection, rows_per_slot: int
) -> Schedule | None:
    """Returns how the rows of a batch go through every stack of a bank; None with strengths.

    Args:
        stacks: All stacks, in the order of their rows.
        routes: What every row selects, from `route`.
        rows_per_slot: The average number of rows of a batch per slot.
    """
    if routes.slot is None or not stacks:
        return None
    shapes = [_first_axis(stack) for stack in stacks]
    on_cpu = partial(schedule, shapes, rows_per_slot)
    on_accelerator = partial(no_schedule, shapes, rows_per_slot)
    return by_platform(on_cpu, lambda _, slot: on_accelerator(slot), routes.slot)


def _first_axis(stack: OperatorStack) -> Any:
    """The shapes of a stack, with slots as the first axis."""

    def shape(x: Array) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((stack.slots, *x.shape[stack.axis + 1 :]), x.dtype)

    return jax.tree.map(shape, stack.stack)


def selection(stack: OperatorStack, routes: Selection) -> Selection:
    """Returns what a row selects from a stack.

    Args:
        stack: The stack.
        routes: One row of `route`.
    """
    if routes.strengths is not None:
        return Selection(strengths=routes.strengths[stack.row, : stack.slots])
    assert routes.slot is not None
    return Selection(routes.slot[stack.row])


def select(
    stacks: Sequence[OperatorStack],
    routes: Selection,
    shape: tuple[int, int],
    is_factor: bool,
    rows_per_slot: int,
    schedules: Schedule | None = None,
) -> Operator:
    """Returns the operator that a row selects on one side of its map.

    Args:
        stacks: The stacks of L, of R or of Δ.
        routes: What the row selects from every stack of the bank: its row of `route`.
        shape: The shape of the operators.
        is_factor: Whether they are an L or R.
        rows_per_slot: The average number of rows of a batch per slot.
        schedules: How all rows go through every stack of the bank; None to find it at each use.

    Returns:
        An operator, or a stack of them for a leaf with layers.
    """
    if not stacks:
        return Identity(shape[0]) if is_factor else Zero(*shape)
    picks = [selection(stack, routes) for stack in stacks]
    if is_factor and all(isinstance(stack.stack, Diagonal) for stack in stacks):
        # One vector per row is small and is read during the multiplication: no loop is needed.
        return Diagonal(_diagonal(stacks, picks))
    own: tuple[Schedule, ...] = ()
    if schedules is not None:
        own = tuple(replace(schedules, number=jnp.int32(stack.row)) for stack in stacks)
    if stacks[0].axis:
        layers = jax.tree.leaves(stacks[0].stack)[0].shape[0]
        picks, own = jax.tree.map(
            lambda x: jnp.broadcast_to(x[None], (layers, *x.shape)), (picks, own)
        )
    operators = tuple(stack.stack for stack in stacks)
    return PerRow(operators, tuple(picks), *shape, is_factor, False, rows_per_slot, own)


def _diagonal(stacks: Sequence[OperatorStack], picks: Sequence[Selection]) -> Array:
    """Returns the diagonal that a row selects, or ones."""
    axis = stacks[0].axis
    result = jnp.ones_like(jax.lax.index_in_dim(stacks[0].stack.d, 0, axis, keepdims=False))
    for stack, pick in zip(stacks, picks, strict=True):
        assert pick.slot is not None  # only leaves to which all members add take strengths
        selected = jnp.take(stack.stack.d, jnp.maximum(pick.slot, 0), axis=stack.axis, mode="clip")
        result = jnp.where(pick.slot >= 0, selected, result)
    return result
