"""One leaf of a bank: the stacks of all members' operators there, and the leaf for each row."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxmix.affine import AffineMap
from jaxmix.bank.padding import padded_factors, padded_terms
from jaxmix.bank.slots import Selection
from jaxmix.bank.stacks import (
    OperatorStack,
    build_stacks,
    insert,
    select,
    selection,
)
from jaxmix.placement.form import Form
from jaxmix.placement.quantized import dequantized
from jaxmix.pytrees import register_dataclass
from jaxmix.unmerged.leaf import Factored, NotApart, Tags

__all__ = ["BankLeaf", "build_leaf"]

# The sides of an affine map, and whether a missing operator is the identity there (or zero).
_SIDES = {"left": True, "right": True, "shift": False}


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

    def of_row(self, base: Any, routes: Selection, rows_per_slot: int) -> Any:
        """Returns the leaf for one row.

        Args:
            base: The base's leaf.
            routes: What the row selects from every stack of the bank, as in `stacks.route`.
            rows_per_slot: The average number of rows of a batch per slot.

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
            side: select(self.stacks[side], routes, shapes[side], is_factor, rows_per_slot)
            for side, is_factor in _SIDES.items()
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
        return ("whole",) if self.reason else tuple(_SIDES)

    def put(self, number: int, leaf: Factored, owners: np.ndarray) -> "BankLeaf | None":
        """Returns the leaf with another member in free slots, or None if it does not fit.

        Args:
            number: The member's number.
            leaf: Its factored leaf, with its map.
            owners: The bank's table of owners, which is changed.
        """
        items = _items(leaf, not self.reason)
        if items is None or (not self.reason and _axes(leaf) != self.axes):
            return None
        now = {side: insert(self.stacks[side], owners, number, items[side]) for side in items}
        is_linear = self.is_linear and _is_linear(leaf)
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
    items = {number: _items(leaf, apart=True) for number, leaf in leaves.items()}
    axes = {_axes(leaf) for leaf in leaves.values()}
    refusals = [
        weight
        for leaf in leaves.values()
        if isinstance(weight := leaf.apart(as_matrix=True), NotApart)
    ]
    reason = refusals[0].why if refusals else ""
    if not reason and len(axes) > 1:
        reason = "its members see its axes differently"
    if reason:
        items = {number: _items(leaf, apart=False) for number, leaf in leaves.items()}
        sides, shape, axis = ("whole",), (), 0
    else:
        assert first.ready_map is not None
        axis = int(first.forms[0].index is not None)
        sides, shape = tuple(_SIDES), _shape(first)
    stacks: dict[str, tuple[OperatorStack, ...]] = {}
    owners: list[Sequence[int]] = []
    for side in sides:
        operators = {number: by_side[side] for number, by_side in items.items() if by_side}
        stacks[side], new_owners = build_stacks(operators, slots_for, axis, row + len(owners))
        owners += new_owners
    is_linear = not reason and all(map(_is_linear, leaves.values()))
    common_axes = None if reason else axes.pop()
    is_vector = any(refusal.is_vector for refusal in refusals)
    static = (first.shape, first.forms, common_axes, shape, is_linear, reason, is_vector)
    return BankLeaf(stacks, name, *static), owners


def _items(leaf: Factored, apart: bool) -> dict[str, list[Any]] | None:
    """Returns a member's operators on each side, or the merged leaf."""
    if not apart:
        return {"whole": [leaf.dense()]}
    if leaf.ready_map is None:
        return None
    return {
        "left": padded_factors(leaf.ready_map.left),
        "right": padded_factors(leaf.ready_map.right),
        "shift": padded_terms(leaf.ready_map.shift),
    }


def _axes(leaf: Factored) -> Any:
    """Returns the leaf's axes of rows, columns and layers; None without a separate map."""
    weight = leaf.apart(as_matrix=True)
    return None if isinstance(weight, NotApart) else (weight.out, weight.into, weight.stack)


def _shape(leaf: Factored) -> tuple[int, int]:
    """Returns the shape (out, in) of the leaf's maps."""
    weight = leaf.apart(as_matrix=True)
    assert not isinstance(weight, NotApart)
    return weight.matrix_shape


def _is_linear(leaf: Factored) -> bool:
    """Whether a member only adds to the leaf, in proportion to its strength."""
    is_base_side = any(update.is_base_side for chain in leaf.chains for _, update in chain)
    return leaf.ready_map is not None and leaf.ready_map.is_shift and not is_base_side
