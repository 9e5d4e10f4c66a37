"""Builds a bank's leaves: attaches every member and sorts its operators by leaf and structure."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from jaxmix.adapter import Adapter, Mixable
from jaxmix.bank.leaves import BankLeaf, build_leaf
from jaxmix.bank.stacks import broken_table, owner_table
from jaxmix.errors import AdapterError, listing
from jaxmix.mixing import Mix, mix
from jaxmix.placement.layout import Layout
from jaxmix.placement.names import leaf_names
from jaxmix.unmerged.attaching import attach_only, is_factored
from jaxmix.unmerged.leaf import Factored

__all__ = [
    "MemberNames",
    "Origin",
    "attach_member",
    "broken_slots",
    "build_leaves",
    "check_capacity",
    "check_members",
    "factored_by_name",
    "insert_member",
    "mix_all",
    "untied_base",
]


@dataclass(frozen=True)
class MemberNames:
    """The members' names, ignored in comparisons: renaming members does not recompile."""

    names: tuple[str | None, ...] = field(compare=False)


@dataclass(frozen=True)
class Origin:
    """What a bank was built from, used to add members. It is not part of the pytree."""

    base: Any
    members: dict[str, Any]
    layout: Layout | str | None


def check_members(members: Any, caller: str) -> dict[str, Any]:
    """Checks members and returns them as a dict.

    Raises:
        AdapterError: If `members` is not a mapping of names to adapters and mixes.
    """
    if not isinstance(members, Mapping):
        raise AdapterError(
            f"{caller} got a {type(members).__name__}, expected {{name: adapter or mix}}."
        )
    wrong = [
        f"{name!r}: {type(member).__name__}"
        for name, member in members.items()
        if not isinstance(member, Mixable) or not isinstance(name, str)
    ]
    if wrong:
        raise AdapterError(
            f"{caller} got members that are not an adapter or a mix, or names that are not strings:"
            f"{listing(wrong)}\nLoad adapters with jaxmix.load, and mix them with jaxmix.mix."
        )
    return dict(members)


def mix_all(members: Mapping[str, Mixable], strengths: Sequence[Any] | None = None) -> Mix:
    """Mixes all members in order, each at its strength; parts are named after their members."""
    parts: list[Adapter] = []
    for i, (name, member) in enumerate(members.items()):
        scaled = member if strengths is None else member * strengths[i]
        parts.extend(part.renamed(f"{name}/{k}") for k, part in enumerate(scaled.parts))
    return mix(*parts)


def factored_by_name(tree: Any) -> dict[str, Any]:
    """Returns a tree's leaves, including factored leaves, by their dotted names."""
    paths, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_factored)
    names = leaf_names([path for path, _ in paths])
    return dict(zip(names, (leaf for _, leaf in paths), strict=True))


def untied_base(params: Any, members: Mapping[str, Mixable], layout: Layout | str | None) -> Any:
    """Returns the params, untied if some member changes only one side of a tie."""
    tree = attach_only(params, mix_all(members), layout)
    return jax.tree.map(lambda x: x.base if is_factored(x) else x, tree, is_leaf=is_factored)


def attach_member(base: Any, member: Mixable, layout: Layout | str | None) -> dict[str, Factored]:
    """Returns the leaves that a member changes, by name."""
    tree = attach_only(base, member, layout)
    return {name: leaf for name, leaf in factored_by_name(tree).items() if is_factored(leaf)}


def build_leaves(
    base: Any,
    members: Mapping[int, Mixable],
    layout: Layout | str | None,
    slots_for: Callable[[int], int],
) -> tuple[tuple[BankLeaf, ...], np.ndarray]:
    """Builds the `BankLeaf` of each leaf that some member changes, in the order of the tree.

    Args:
        base: The base.
        members: The members by their numbers.
        layout: Where the sites are in the tree.
        slots_for: Returns the number of slots for a number of members with one structure.

    Returns:
        The leaves, and the table of the owners of their slots.
    """
    by_name: dict[str, dict[int, Factored]] = {}
    for number, member in members.items():
        for name, leaf in attach_member(base, member, layout).items():
            by_name.setdefault(name, {})[number] = leaf
    names = [name for name in factored_by_name(base) if name in by_name]
    leaves: list[BankLeaf] = []
    owners: list[Sequence[int]] = []
    for name in names:
        leaf, owners_of_leaf = build_leaf(name, by_name[name], slots_for, len(owners))
        leaves.append(leaf)
        owners += owners_of_leaf
    return tuple(leaves), owner_table([x for leaf in leaves for x in leaf.all_stacks], owners)


def broken_slots(leaves: Sequence[BankLeaf]) -> Array:
    """Returns whether a slot's operator held inf or NaN, in the form of the table of owners."""
    return broken_table([stack for leaf in leaves for stack in leaf.all_stacks])


def insert_member(
    leaves: Sequence[BankLeaf], new: Mapping[str, Factored], number: int, owners: np.ndarray
) -> tuple[BankLeaf, ...] | None:
    """Returns a bank's leaves with another member in free slots, or None if it does not fit.

    Args:
        leaves: The leaves.
        new: The member's factored leaves, by name.
        number: The member's number.
        owners: The table of owners, which is changed.
    """
    by_name = {leaf.name: leaf for leaf in leaves}
    for name, leaf in new.items():
        inserted = by_name[name].put(number, leaf, owners) if name in by_name else None
        if inserted is None:
            return None
        by_name[name] = inserted
    return tuple(by_name.values())


def check_capacity(capacity: Any, count: int) -> int:
    """Checks a capacity; the default is the next power of two."""
    if capacity is None:
        return 1 << max(count - 1, 0).bit_length()
    if not isinstance(capacity, int) or isinstance(capacity, bool) or capacity < max(count, 1):
        raise AdapterError(
            f"Bank: capacity is {capacity!r}, expected an integer of at least {max(count, 1)}, the "
            "number of members."
        )
    return capacity
