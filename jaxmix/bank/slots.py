"""Slots of stacks: the selection of one operator, and the uses of an operator."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from jaxtyping import Array, Float, Int

from jaxmix.operators import Operator
from jaxmix.pytrees import register_dataclass

__all__ = ["BROKEN", "NOTHING", "Selection", "Use", "count_slots", "entry"]

# A row's slot where it selects nothing (the least number), and where its operator holds inf or NaN.
NOTHING, BROKEN = -2, -1

# A use of an operator with a row's tokens (a product) or a row's token indices (a lookup).
Use = Callable[[Operator, Array], Array]


@register_dataclass
@dataclass(frozen=True, eq=False)
class Selection:
    """What a row selects from a stack: the operator in one slot, or all of them with strengths.

    Args:
        slot: The slot, `NOTHING` or `BROKEN`; None with strengths.
        strengths: The strength of each slot, NaN for a broken operator unless it is 0; None with a
            slot.
    """

    slot: Int[Array, "*rows"] | None = None
    strengths: Float[Array, "*rows slots"] | None = None


def entry(stack: Any, slot: Any) -> Any:
    """Returns the operator in a slot.

    Args:
        stack: A pytree whose arrays have a leading axis of slots.
        slot: The index of the slot, traced or not, inside the stack.
    """
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, slot, 0, keepdims=False), stack)


def count_slots(stack: Any) -> int:
    """Returns the number of slots of a stack, 1 if it has no arrays."""
    leaves = jax.tree.leaves(stack)
    return leaves[0].shape[0] if leaves else 1
