"""Stacks of the members' operators: operators of one structure share a stack.

A stack has a slot for each member that has such an operator, and free slots. One table holds the
owners of all slots of a bank. So replacing a member, or adding one to free slots, changes only
values, and the compiled program stays the same. Ranks and counts are padded with zeros to the next
power of two, so operators of similar sizes share a stack.

Accelerators multiply all rows with the whole stack (`masked`). So an operator that holds inf or NaN
would change the rows of other members. Its slot holds zeros instead and is flagged as broken, and
the rows that select it become NaN.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from jaxmix.bank.padding import structure_key
from jaxmix.operators import Diagonal, Operator
from jaxmix.pytrees import register_dataclass

__all__ = [
    "OperatorStack",
    "broken_table",
    "build_stacks",
    "insert",
    "owner_table",
]


@register_dataclass
@dataclass(frozen=True, eq=False)
class OperatorStack:
    """Operators of one structure, or arrays of one shape, one in each slot.

    Args:
        stack: A pytree whose arrays have an axis of slots. It is the first axis, or the second one
            if the leaf has layers.
        broken: Whether a slot's operator held inf or NaN (slots,).
        slots: The number of slots.
        axis: The axis of slots.
        row: The stack's row in the table of owners.
    """

    stack: Any
    broken: Bool[Array, " slots"]
    slots: int = field(metadata={"static": True})
    axis: int = field(metadata={"static": True})
    row: int = field(default=0, metadata={"static": True})

    @property
    def key(self) -> Hashable:
        """A key that is equal to `structure_key` of the operators that fit this stack."""
        return structure_key(self.stack, self.axis)


def build_stacks(
    groups: Sequence[tuple[Sequence[int], Sequence[Any]]],
    slots_for: Callable[[int], int],
    axis: int,
) -> tuple[tuple[OperatorStack, ...], list[Sequence[int]]]:
    """Builds the stacks of all members' operators.

    Args:
        groups: Groups of members that have the same structures: their numbers, and their operators
            or arrays, each with an axis of members where the stack has that of slots.
        slots_for: Returns the number of slots for a number of members with one structure.
        axis: The axis of slots.

    Returns:
        One stack per structure, or several if a member has several operators of that structure; and
        the number of the member that owns each slot that is not free, by stack.
    """
    found: dict[Hashable, list[tuple[Sequence[int], Any]]] = {}
    for numbers, items in groups:
        counts: dict[Hashable, int] = {}
        for item in items:
            key = structure_key(item, axis)
            counts[key] = counts.get(key, 0) + 1
            found.setdefault((key, counts[key]), []).append((numbers, item))
    stacks: list[OperatorStack] = []
    owners: list[Sequence[int]] = []
    for parts in found.values():
        owners.append([number for numbers, _ in parts for number in numbers])
        slots = slots_for(len(owners[-1]))
        stacks.append(_build([item for _, item in parts], slots, axis, len(stacks)))
    return tuple(stacks), owners


def _build(items: Sequence[Any], slots: int, axis: int, row: int) -> OperatorStack:
    """Builds one stack of several groups' items."""

    def joined(*leaves: Array) -> Array:
        taken = sum(leaf.shape[axis] for leaf in leaves)
        shape = (*leaves[0].shape[:axis], slots - taken, *leaves[0].shape[axis + 1 :])
        return jnp.concatenate([*leaves, jnp.zeros(shape, leaves[0].dtype)], axis)

    broken, stack = _checked(jax.tree.map(joined, *items), axis, slots)
    return OperatorStack(stack, broken, slots, axis, row)


def _checked(stack: Any, axis: int, slots: int) -> tuple[Bool[Array, " slots"], Any]:
    """Returns which slots' operators hold inf or NaN, and the stack with zeros in their place."""
    if isinstance(stack, Diagonal) or not isinstance(stack, Operator):
        return jnp.zeros(slots, bool), stack  # each row selects its own
    is_finite = jnp.ones(slots, bool)
    for x in jax.tree.leaves(stack):
        is_finite &= jnp.isfinite(x).all([k for k in range(x.ndim) if k != axis])

    def finite(x: Array) -> Array:
        mask = is_finite.reshape([slots if k == axis else 1 for k in range(x.ndim)])
        return jnp.where(mask, x, jnp.zeros((), x.dtype))

    return ~is_finite, jax.tree.map(finite, stack)


def owner_table(stacks: Sequence[OperatorStack], owners: Sequence[Sequence[int]]) -> np.ndarray:
    """Returns the table of the members' numbers that own the slots.

    Args:
        stacks: All stacks of a bank, in the order of their rows.
        owners: The owners of each stack's first slots.

    Returns:
        (stacks, slots of the largest stack) int32, with -1 for free slots and padding.
    """
    table = np.full((len(stacks), max((stack.slots for stack in stacks), default=0)), -1, np.int32)
    for row, numbers in zip(table, owners, strict=True):
        row[: len(numbers)] = numbers
    return table


def broken_table(stacks: Sequence[OperatorStack]) -> Array:
    """Returns the flags of all stacks (stacks, slots), in the form of `owner_table`."""
    width = max((stack.slots for stack in stacks), default=0)
    return _table([stack.broken for stack in stacks], width)


@partial(jax.jit, static_argnums=1)
def _table(flags: Sequence[Array], width: int) -> Array:
    """Returns flags of different lengths as rows of a table."""
    rows = [jnp.pad(row, (0, width - len(row))) for row in flags]
    return jnp.stack(rows) if rows else jnp.zeros((0, width), bool)


def insert(
    stacks: Sequence[OperatorStack], owners: np.ndarray, number: int, items: Sequence[Any]
) -> tuple[OperatorStack, ...] | None:
    """Inserts a member's operators into free slots and enters them in the table of owners.

    Args:
        stacks: The stacks of one side of a leaf.
        owners: The bank's table, which is changed.
        number: The member's number.
        items: Its operators.

    Returns:
        The new stacks; None if an operator has no free slot.
    """
    new = list(stacks)
    unused = list(range(len(new)))
    for item in items:
        key = structure_key(item)
        at = next((i for i in unused if new[i].key == key and len(_free(new[i], owners))), None)
        if at is None:
            return None
        unused.remove(at)
        old = new[at]
        slot = int(_free(old, owners)[0])
        new[at] = _with_item(old, item, np.int32(slot))
        owners[old.row, slot] = number
    return tuple(new)


@jax.jit
def _with_item(old: OperatorStack, item: Any, slot: Any) -> OperatorStack:
    """Returns a stack with an item in a slot."""
    single = jax.tree.map(lambda x: jnp.expand_dims(x, old.axis), item)
    broken, finite = _checked(single, old.axis, 1)

    def put(x: Array, value: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(x, value, slot, old.axis)

    stack = jax.tree.map(put, old.stack, finite)
    flags = jax.lax.dynamic_update_slice_in_dim(old.broken, broken, slot, 0)
    return replace(old, stack=stack, broken=flags)


def _free(stack: OperatorStack, owners: np.ndarray) -> np.ndarray:
    """Returns the free slots of a stack."""
    return np.flatnonzero(owners[stack.row, : stack.slots] < 0)
