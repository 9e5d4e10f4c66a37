"""The batched form of `PerRow` on CPU: a loop over the rows.

Under `jax.vmap` over the rows, plain indexing would copy every row's factors before it multiplies.
On CPU that took longer than the base's product. So if most slots are used, one batched product
reads the whole stack. The remaining rows go through a loop with a traced trip count, which reads
each row's factors once and skips rows that select nothing.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxmix.bank.slots import Selection, Use, count_slots, entry
from jaxmix.operators import Sparse
from jaxmix.operators.loops import carry

__all__ = ["apply_by_loops"]


def apply_by_loops(
    use: Use,
    is_factor: bool,
    start: Array,
    x: Array,
    stacks: Sequence[Any],
    picks: Sequence[Selection],
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
        rows_per_slot: The average number of rows per slot.

    Returns:
        The result, with the shape of `start`.
    """
    result = carry(start, x, stacks, picks)
    for stack, pick in zip(stacks, picks, strict=True):
        if pick.strengths is not None:
            result = _by_strength(use, result, x, stack, pick.strengths)
        elif pick.slot is not None:
            result = _by_slot(use, is_factor, result, x, stack, pick.slot, rows_per_slot)
    return result


def _by_slot(
    use: Use, is_factor: bool, result: Array, x: Array, stack: Any, slot: Array, rows_per_slot: int
) -> Array:
    """Applies to each row the operator in its slot.

    If most slots are used, one batched product handles up to `rows_per_slot` rows of each and reads
    the whole stack. The remaining rows, or all rows if few slots are used, run one by one.
    """
    rows, slots = slot.shape[0], count_slots(stack)
    used = jnp.where(slot < 0, slots, slot)
    order = jnp.argsort(used, stable=True).astype(np.int32)
    sorted_slots = used[order]
    numbers = jnp.arange(slots + 1, dtype=sorted_slots.dtype)
    first = jnp.searchsorted(sorted_slots, numbers).astype(np.int32)

    positions = first[:slots, None] + jnp.arange(rows_per_slot, dtype=np.int32)[None]
    is_row = positions < first[1:, None]
    is_done = sorted_slots == slots
    if slots > 1 and _is_batchable(stack):
        is_full = 2 * jnp.sum(is_row) >= slots * rows_per_slot

        def batched(result: Array) -> Array:
            targets = jnp.where(is_row, order[jnp.minimum(positions, rows - 1)], rows).reshape(-1)
            inputs = x.at[targets].get(mode="clip")
            tokens = inputs.reshape(slots, rows_per_slot * x.shape[1], *x.shape[2:])
            out = jax.vmap(use)(stack, tokens).astype(result.dtype).reshape(-1, *result.shape[1:])
            ref = result.at[targets]
            return ref.set(out, mode="drop") if is_factor else ref.add(out, mode="drop")

        result = jax.lax.cond(is_full, batched, lambda result: result, result)
        rank_in_slot = jnp.arange(rows, dtype=np.int32) - first[sorted_slots]
        is_done = is_done | (is_full & (rank_in_slot < rows_per_slot))
    remaining = jnp.argsort(is_done, stable=True)

    def add(k: Array, result: Array) -> Array:
        row = order[remaining[k]]
        output = use(entry(stack, slot[row]), entry(x, row)).astype(result.dtype)
        output = output if is_factor else entry(result, row) + output
        return jax.lax.dynamic_update_index_in_dim(result, output, row, 0)

    return jax.lax.fori_loop(0, jnp.sum(~is_done), add, result)


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
