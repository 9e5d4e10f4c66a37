"""One leaf of a bank: the stacks of all members' operators there, and the leaf for each row."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxmix.affine import AffineMap
from jaxmix.bank.looped import Schedule
from jaxmix.bank.maps import SIDES, maps_of, stacked_maps
from jaxmix.bank.routing import select, selection
from jaxmix.bank.slots import Selection
from jaxmix.bank.stacks import OperatorStack, build_stacks, insert
from jaxmix.placement.form import Form
from jaxmix.placement.quantized import dequantized
from jaxmix.pytrees import register_dataclass
from jaxmix.unmerged.leaf import Factored, NotApart, Tags

__all__ = ["BankLeaf", "build_leaf"]


@register_dataclass
@dataclass(frozen=True, eq=False)
class BankLeaf:
    """What the members change at one leaf: stacks of their L, R and Δ.

    A leaf is whole if some member's map can't be kept apart from it: then the stacks hold the
    merged leaves of the members.

    Args:
        stacks: The stacks of each side; those of a whole leaf under "whole".
        name: The leaf's dotted name.
        leaf_shape: The leaf's shape.
        forms: How the leaf holds its sites' tensors, as in `Factored`.
        axes: The leaf's axes for rows, columns and layers, counted from the end; None for a
            whole leaf.
        shape: The shape (out, in) of the maps; () for a whole leaf.
        is_linear: Whether all members only add to the weight, in proportion to their strengths.
        reason: Why the leaf is whole; "" if it is not.
        is_vector: Whether the leaf is a vector, whose dense form costs no more.
    """

    stacks: Mapping[str, tuple[OperatorStack, ...]]
    name: str = field(metadata={"static": True})
    leaf_shape: tuple[int, ...] = field(metadata={"static": True})
    forms: tuple[Form, ...] = field(metadata={"static": True})
    axes: Any = field(metadata={"static": True})
    shape: tuple[int, ...] = field(metadata={"static": True})
    is_linear: bool = field(metadata={"static": True})
    reason: str = field(metadata={"static": True})
    is_vector: bool = field(default=False, metadata={"static": True})

    def of_row(
        self, base: Any, routes: Selection, rows_per_slot: int, schedules: Schedule | None
    ) -> Any:
        """Returns the leaf for one row.

        Args:
            base: The base's leaf.
            routes: What the row selects from every stack of the bank, as in `routing.route`.
            rows_per_slot: The average number of rows of a batch per slot.
            schedules: How all rows go through every stack of the bank, as in `routing.schedules`.

        Returns:
            A factored leaf, or an array if the leaf is whole.
        """
        if self.reason:
            leaf = jnp.asarray(dequantized(base))
            for stack in self.stacks["whole"]:
                slot = selection(stack, routes).slot
                assert slot is not None  # only leaves to which all members add take strengths
                merged = jnp.take(stack.stack, jnp.maximum(slot, 0), axis=0, mode="clip")
                leaf = jnp.where(slot >= 0, merged.astype(leaf.dtype), leaf)
            return leaf
        out, into = self.shape
        shapes = {"left": (out, out), "right": (into, into), "shift": (out, into)}
        sides = {
            side: select(
                self.stacks[side], routes, shapes[side], is_factor, rows_per_slot, schedules
            )
            for side, is_factor in SIDES.items()
        }
        names = tuple("" for _ in self.forms)
        tags = Tags(names, tuple(() for _ in names), tuple(False for _ in names), ())
        return Factored(base, (), None, (), AffineMap(**sides), self.forms, None, tags)

    def described(self) -> str:
        """Describes how the leaf is run, for `Bank.explain`."""
        if self.reason:
            count = sum(stack.slots for stack in self.stacks["whole"])
            return f"{self.name}: whole, {count} slots ({self.reason})"
        shown = [
            f"{symbol} {type(stack.stack).__name__} of {stack.slots} slots"
            for side, symbol in (("left", "L"), ("right", "R"), ("shift", "Δ"))
            for stack in self.stacks[side]
        ]
        return f"{self.name}: {', '.join(shown) or 'nothing'}"

    @property
    def all_stacks(self) -> tuple[OperatorStack, ...]:
        """The stacks of all sides, in the order of their rows in the table of owners."""
        return tuple(stack for side in self._sides for stack in self.stacks[side])

    @property
    def _sides(self) -> tuple[str, ...]:
        return ("whole",) if self.reason else tuple(SIDES)

    def put(self, number: int, leaf: Factored, owners: np.ndarray) -> "BankLeaf | None":
        """Returns the leaf with another member in free slots, or None if it does not fit.

        Args:
            number: The member's number.
            leaf: Its factored leaf, with its map.
            owners: The bank's table of owners, which is changed.
        """
        if self.reason:
            items: Mapping[str, Sequence[Any]] = {"whole": [leaf.dense()]}
            is_linear = False
        else:
            maps = maps_of(leaf)
            if isinstance(maps, NotApart) or maps.axes != self.axes:
                return None
            items, is_linear = maps.sides, self.is_linear and maps.is_linear
        now = {side: insert(self.stacks[side], owners, number, items[side]) for side in items}
        if is_linear != self.is_linear or any(stacks is None for stacks in now.values()):
            return None
        return replace(self, stacks=now)


def build_leaf(
    name: str, leaves: Mapping[int, Factored], slots_for: Callable[[int], int], row: int
) -> tuple[BankLeaf, list[Sequence[int]]]:
    """Builds the stacks of all members at one leaf.

    Args:
        name: The leaf's dotted name.
        leaves: Each member's factored leaf with its map, by the member's number.
        slots_for: Returns the number of slots for a number of members with one structure.
        row: The row of its first stack in the table of owners.

    Returns:
        The leaf, and the owners of each stack's slots.
    """
    first = next(iter(leaves.values()))
    maps = stacked_maps(leaves, slots_for)
    static: tuple[Any, ...]
    if isinstance(maps, NotApart):
        merged = [((number,), [leaf.dense()[None]]) for number, leaf in leaves.items()]
        whole, owners = build_stacks(merged, slots_for, 0)
        sides: Mapping[str, Sequence[OperatorStack]] = {"whole": whole}
        static = first.shape, first.forms, None, (), False, maps.why, maps.is_vector
    else:
        sides, owners = maps.sides, maps.owners
        static = first.shape, first.forms, maps.axes, maps.shape, maps.is_linear, ""
    stacks = {
        side: tuple(replace(stack, row=stack.row + row) for stack in of_side)
        for side, of_side in sides.items()
    }
    return BankLeaf(stacks, name, *static), list(owners)
