"""Slots of stacks: the selection of one operator, and the uses of an operator."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxmix.operators import Operator

__all__ = ["BROKEN", "Use", "count_slots", "entry", "is_slot"]

# A row's slot where its operator held inf or NaN: the least slot. Any other negative slot selects
# nothing.
BROKEN = -2

# A use of an operator with a row's tokens (a product) or a row's token indices (a lookup).
Use = Callable[[Operator, Array], Array]


def entry(stack: Any, slot: Any) -> Any:
    """Returns the operator in a slot.

    Args:
        stack: A pytree whose arrays have a leading axis of slots.
        slot: The index of the slot, traced or not, inside the stack.
    """
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, slot, 0, keepdims=False), stack)


def is_slot(pick: Array) -> bool:
    """Returns whether a pick is the index of a slot and not an array of strengths."""
    return jnp.issubdtype(pick.dtype, jnp.integer)


def count_slots(stack: Any) -> int:
    """Returns the number of slots of a stack, 1 if it has no arrays."""
    leaves = jax.tree.leaves(stack)
    return leaves[0].shape[0] if leaves else 1
