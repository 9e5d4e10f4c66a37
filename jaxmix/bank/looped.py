"""The batched form of `PerRow` on CPU: a loop over the rows.

Under `jax.vmap` over the rows, plain indexing would copy every row's factors before it multiplies.
On CPU that took longer than the base's product. So if most slots are used, one batched product
reads the whole stack. The remaining rows go through a loop with a traced trip count, which reads
each row's factors once and skips rows that select nothing.

Which rows these are is found for all stacks of a bank at once (`schedule`): sorts for each stack
and leaf took most of the time to compile.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from jaxmix.bank.slots import Selection, Use, count_slots, entry
from jaxmix.operators import Sparse
from jaxmix.operators.loops import carry
from jaxmix.pytrees import register_dataclass

__all__ = ["Schedule", "apply_by_loops", "no_schedule", "schedule"]


@register_dataclass
@dataclass(frozen=True, eq=False)
class Schedule:
    """How the rows of a batch go through one of several stacks.

    Args:
        number: The number of the stack.
        is_batched: Whether one batched product handles up to `rows_per_slot` rows of each slot.
        batch: The rows of that product, slot by slot; any row in places that are not used.
        place: The place of each row in it, -1 if the row goes through the loop or selects nothing.
        count: The number of rows that go through the loop.
        order: The rows, of which the first `count` go through the loop.
        slot: The slot of each of these.
    """

    number: Int[Array, ""]
    is_batched: Bool[Array, " stacks"]
    batch: Int[Array, "stacks places"]
    place: Int[Array, "stacks rows"]
    count: Int[Array, " stacks"]
    order: Int[Array, "stacks rows"]
    slot: Int[Array, "stacks rows"]


def schedule(
    stacks: Sequence[Any], rows_per_slot: int, slot: Int[Array, "rows stacks"]
) -> Schedule:
    """Returns how the rows of a batch go through the first of several stacks.

    Args:
        stacks: The stacks.
        rows_per_slot: The average number of rows per slot.
        slot: The slot of each stack that a row selects.
    """
    counts = np.asarray([count_slots(stack) for stack in stacks], np.int32)
    is_batchable = np.asarray([_is_batchable(stack) for stack in stacks]) & (counts > 1)
    rows, slots = slot.shape[0], int(counts.max())
    used = jnp.where(slot < 0, np.int32(slots), slot.astype(np.int32)).T
    order = jnp.argsort(used, axis=1, stable=True).astype(np.int32)
    by_slot = jnp.take_along_axis(used, order, 1)
    numbers = jnp.arange(slots + 1, dtype=np.int32)
    first = jax.vmap(lambda x: jnp.searchsorted(x, numbers))(by_slot).astype(np.int32)
    taken = jnp.minimum(first[:, 1:] - first[:, :-1], rows_per_slot).sum(1, dtype=np.int32)
    is_full = jnp.asarray(is_batchable) & (2 * taken >= counts * np.int32(rows_per_slot))

    places = first[:, :slots, None] + jnp.arange(rows_per_slot, dtype=np.int32)[None, None]
    places = jnp.minimum(places, rows - 1).reshape(len(counts), -1)
    batch = jnp.take_along_axis(order, places, 1)
    rank = jnp.arange(rows, dtype=np.int32)[None] - jnp.take_along_axis(first, by_slot, 1)
    is_taken = is_full[:, None] & (by_slot < slots) & (rank < rows_per_slot)
    place = jnp.where(is_taken, by_slot * rows_per_slot + rank, -1)
    place = jnp.take_along_axis(place, jnp.argsort(order, axis=1), 1)

    is_done = is_taken | (by_slot == slots)
    remaining = jnp.argsort(is_done, axis=1, stable=True)
    count = jnp.sum(~is_done, 1, dtype=np.int32)
    order, by_slot = (jnp.take_along_axis(x, remaining, 1) for x in (order, by_slot))
    return Schedule(jnp.zeros((), np.int32), is_full, batch, place, count, order, by_slot)


def no_schedule(
    stacks: Sequence[Any], rows_per_slot: int, slot: Int[Array, "rows stacks"]
) -> Schedule:
    """Returns a schedule of zeros with the shapes of `schedule`, for programs without loops."""
    shapes = jax.eval_shape(lambda slot: schedule(stacks, rows_per_slot, slot), slot)
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)


def apply_by_loops(
    use: Use,
    is_factor: bool,
    start: Array,
    x: Array,
    stacks: Sequence[Any],
    picks: Sequence[Selection],
    schedules: Sequence[Schedule],
    rows_per_slot: int,
) -> Array:
    """Applies the selected operators to a batch of rows; rows that select nothing cost nothing.

    Args:
        use: The use of an operator with one row's input.
        is_factor: Whether the result of a row that selects something replaces its `start`.
        start: The result for rows that select nothing (rows, tokens, ...).
        x: The input (rows, tokens, ...).
        stacks: The stacks of operators.
        picks: What the rows select from each stack.
        schedules: How the rows go through each stack; empty to find it here.
        rows_per_slot: The average number of rows per slot.

    Returns:
        The result, with the shape of `start`.
    """
    result = carry(start, x, stacks, picks)
    slots = [pick.slot for pick in picks if pick.slot is not None]
    if not schedules and len(slots) == len(stacks):
        found = schedule(stacks, rows_per_slot, jnp.stack(slots, 1))
        schedules = [replace(found, number=jnp.int32(i)) for i in range(len(stacks))]
    for i, (stack, pick) in enumerate(zip(stacks, picks, strict=True)):
        if pick.strengths is not None:
            result = _by_strength(use, result, x, stack, pick.strengths)
        elif pick.slot is not None:
            result = _by_slot(use, is_factor, result, x, stack, schedules[i], rows_per_slot)
    return result


def _by_slot(
    use: Use,
    is_factor: bool,
    result: Array,
    x: Array,
    stack: Any,
    own: Schedule,
    rows_per_slot: int,
) -> Array:
    """Applies to each row the operator in its slot."""
    slots = count_slots(stack)
    # Tables are read inside the branch and the loop, where XLA fuses this into other kernels.
    if slots > 1 and _is_batchable(stack):

        def batched(result: Array) -> Array:
            inputs = x[entry(own.batch, own.number)[: slots * rows_per_slot]]
            tokens = inputs.reshape(slots, rows_per_slot * x.shape[1], *x.shape[2:])
            out = jax.vmap(use)(stack, tokens).astype(result.dtype).reshape(-1, *result.shape[1:])
            place = entry(own.place, own.number)
            is_taken = (place >= 0).reshape(-1, *[1] * (result.ndim - 1))
            out = out[jnp.maximum(place, 0)]
            return jnp.where(is_taken, out if is_factor else result + out, result)

        is_batched = entry(own.is_batched, own.number)
        result = jax.lax.cond(is_batched, batched, lambda result: result, result)

    def add(k: Array, result: Array) -> Array:
        row, slot = own.order[own.number, k], own.slot[own.number, k]
        output = use(entry(stack, slot), entry(x, row)).astype(result.dtype)
        output = output if is_factor else entry(result, row) + output
        return jax.lax.dynamic_update_index_in_dim(result, output, row, 0)

    return jax.lax.fori_loop(0, entry(own.count, own.number), add, result)


def _by_strength(use: Use, result: Array, x: Array, stack: Any, strengths: Array) -> Array:
    """Applies to each row all operators with a non-zero strength, one by one."""
    slots = count_slots(stack)
    is_done = (strengths == 0).reshape(-1)
    order = jnp.argsort(is_done, stable=True)

    def add(k: Array, result: Array) -> Array:
        row, slot = order[k] // slots, order[k] % slots
        output = use(entry(stack, slot), entry(x, row)).astype(result.dtype)
        output = entry(result, row) + strengths[row, slot].astype(result.dtype) * output
        return jax.lax.dynamic_update_index_in_dim(result, output, row, 0)

    return jax.lax.fori_loop(0, jnp.sum(~is_done), add, result)


def _is_batchable(stack: Any) -> bool:
    """Whether one product for all slots is faster. On CPU it is not for sparse operators."""
    leaves = jax.tree.leaves(stack, is_leaf=lambda x: isinstance(x, Sparse))
    return not any(isinstance(leaf, Sparse) for leaf in leaves)
