"""The operators of all members at one leaf, by one compiled function for each shape of leaf.

Members whose updates have equal structures are a group. Their arrays are stacked, and a loop over
the members computes their maps, so the time to compile depends on the number of groups only, and
the memory on one member's map.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmix.bank.padding import padded_factors, padded_terms
from jaxmix.bank.stacks import OperatorStack, build_stacks
from jaxmix.operators import Operator
from jaxmix.pytrees import register_dataclass
from jaxmix.unmerged.attaching import unnamed
from jaxmix.unmerged.leaf import Factored, NotApart

__all__ = ["SIDES", "Maps", "SlotCounts", "maps_of", "stacked_maps"]

# The sides of an affine map, and whether a missing operator is the identity there (or zero).
SIDES = {"left": True, "right": True, "shift": False}


@dataclass(frozen=True)
class SlotCounts:
    """The number of slots for a number of members with one structure.

    Args:
        capacity: The number of members that fit into the bank.
        members: The number of members.
    """

    capacity: int
    members: int

    def __call__(self, count: int) -> int:
        """Returns the number of slots."""
        return -(-count * self.capacity // max(self.members, 1))


@register_dataclass
@dataclass(frozen=True, eq=False)
class Maps:
    """What one member, or several, make of a leaf apart from its base.

    Args:
        sides: The operators of each side, or their stacks.
        axes: The leaf's axes for rows, columns and layers, counted from the end.
        shape: The shape (out, in) of the maps.
        is_linear: Whether the members only add to the leaf, in proportion to their strengths.
        owners: The members' numbers that own the slots of each stack; empty for one member.
    """

    sides: Mapping[str, Sequence[Any]]
    axes: Any = field(metadata={"static": True})
    shape: tuple[int, int] = field(metadata={"static": True})
    is_linear: bool = field(metadata={"static": True})
    owners: tuple[tuple[int, ...], ...] = field(default=(), metadata={"static": True})


def maps_of(leaf: Factored) -> Maps | NotApart:
    """Returns a member's operators at a leaf, or why it has none.

    Args:
        leaf: The leaf with the member attached.
    """
    return _maps_of(unnamed(leaf))


def stacked_maps(
    leaves: Mapping[int, Factored], slots_for: Callable[[int], int]
) -> Maps | NotApart:
    """Returns the stacks of all members' operators at a leaf, or why it has none.

    Args:
        leaves: The leaf with each member attached, by the member's number.
        slots_for: Returns the number of slots for a number of members with one structure; hashable.
    """
    first = next(iter(leaves.values()))
    groups: dict[Hashable, dict[int, Factored]] = {}
    for number, leaf in leaves.items():
        own = replace(unnamed(leaf), base=None)
        groups.setdefault(_key(own), {})[number] = own
    numbers = tuple(map(tuple, groups.values()))
    members = [tuple(group.values()) for group in groups.values()]
    return _stacked_maps(first.base, members, numbers, slots_for)


def _key(leaf: Factored) -> Hashable:
    """A key that is equal for members whose maps have one structure."""
    arrays, structure = jax.tree.flatten(leaf)
    return structure, tuple((np.shape(x), str(jnp.result_type(x))) for x in arrays)


@jax.jit
def _maps_of(leaf: Factored) -> Maps | NotApart:
    """The operators of one member."""
    weight = leaf.apart(as_matrix=True)
    if isinstance(weight, NotApart):
        return weight
    leaf_map = weight.map
    sides = {
        "left": padded_factors(leaf_map.left),
        "right": padded_factors(leaf_map.right),
        "shift": padded_terms(leaf_map.shift),
    }
    is_base_side = any(update.is_base_side for chain in leaf.chains for _, update in chain)
    axes = weight.out, weight.into, weight.stack
    return Maps(sides, axes, weight.matrix_shape, leaf_map.is_shift and not is_base_side)


@partial(jax.jit, static_argnames=("numbers", "slots_for"))
def _stacked_maps(
    base: Any,
    groups: Sequence[Sequence[Factored]],
    numbers: Sequence[Sequence[int]],
    slots_for: Callable[[int], int],
) -> Maps | NotApart:
    """The stacks of all members, whose leaves have no base."""
    made: list[Maps] = []
    for members in groups:
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
        found = jax.lax.map(lambda leaf: _maps_of(replace(leaf, base=base)), stacked)
        if isinstance(found, NotApart):
            return found
        made.append(found)
    first = made[0]
    if any(found.axes != first.axes for found in made):
        return NotApart("its members see its axes differently")
    axis = int(groups[0][0].forms[0].index is not None)

    def items(found: Maps, side: str) -> Sequence[Operator]:
        return jax.tree.map(lambda x: jnp.moveaxis(x, 0, axis), found.sides[side])

    sides: dict[str, Sequence[OperatorStack]] = {}
    owners: list[tuple[int, ...]] = []
    for side in SIDES:
        by_group = [(own, items(found, side)) for own, found in zip(numbers, made, strict=True)]
        stacks, stack_owners = build_stacks(by_group, slots_for, axis)
        sides[side] = [replace(stack, row=stack.row + len(owners)) for stack in stacks]
        owners += map(tuple, stack_owners)
    is_linear = all(found.is_linear for found in made)
    return Maps(sides, first.axes, first.shape, is_linear, tuple(owners))
