"""A bank's leaves made of its members: every member attached, what they do put by leaf and kind."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxmix.adapter import Adapter, Mixable
from jaxmix.bank.kinds import Kind, key_of, written
from jaxmix.bank.leaves import Kept, kept
from jaxmix.errors import AdapterError, listing
from jaxmix.factored import attach
from jaxmix.factored.attaching import is_factored
from jaxmix.factored.leaf import Factored
from jaxmix.layout import Layout
from jaxmix.mix import Mix, mix
from jaxmix.names import leaf_names

__all__ = [
    "Names",
    "Origin",
    "base_of",
    "capacity",
    "checked",
    "every",
    "factored_by_name",
    "made",
    "of_member",
]


@dataclass(frozen=True)
class Names:
    """The members' names, which are no part of the structure: exchanged, they are one program."""

    names: tuple[str | None, ...] = field(compare=False)


@dataclass(frozen=True)
class Origin:
    """What a bank was made of, for those who add to it: no part of the pytree."""

    base: Any
    members: dict[str, Any]
    layout: Layout | str | None


def checked(members: Any, who: str) -> dict[str, Any]:
    """Members by name.

    Raises:
        AdapterError: if it is no mapping from names to adapters and mixes.
    """
    if not isinstance(members, Mapping):
        raise AdapterError(
            f"{who} got a {type(members).__name__}, expected {{name: adapter or mix}}."
        )
    wrong = [
        f"{name!r}: {type(member).__name__}"
        for name, member in members.items()
        if not isinstance(member, Mixable) or not isinstance(name, str)
    ]
    if wrong:
        raise AdapterError(
            f"{who} got something that is no adapter or mix, or no name for one:{listing(wrong)}\n"
            "Read adapters with jaxmix.load, and mix them with jaxmix.mix."
        )
    return dict(members)


def every(members: Mapping[str, Mixable], strengths: Sequence[Any] | None = None) -> Mix:
    """All members as one mix, in order, each at its strength; parts are named after them."""
    parts: list[Adapter] = []
    for i, (name, member) in enumerate(members.items()):
        whole = member if strengths is None else member * strengths[i]
        parts.extend(part.renamed(f"{name}/{k}") for k, part in enumerate(whole.parts))
    return mix(*parts)


def factored_by_name(tree: Any) -> dict[str, Any]:
    """A tree's leaves by their dotted names, factored ones among them."""
    paths, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_factored)
    names = leaf_names([path for path, _ in paths])
    return dict(zip(names, (leaf for _, leaf in paths), strict=True))


def base_of(params: Any, members: Mapping[str, Mixable], layout: Layout | str | None) -> Any:
    """The params as the members need them: untied, where one of them changes one side."""
    tree = attach(params, every(members), layout=layout)
    return jax.tree.map(lambda x: x.base if is_factored(x) else x, tree, is_leaf=is_factored)


def of_member(base: Any, member: Mixable, layout: Layout | str | None) -> dict[str, Factored]:
    """By name, the leaves that a member changes, their maps made."""
    tree = attach(base, member, layout=layout, ready=True)
    return {name: leaf for name, leaf in factored_by_name(tree).items() if is_factored(leaf)}


def made(
    base: Any, members: Mapping[int, Mixable], layout: Layout | str | None, room: int
) -> tuple[tuple[Kept, ...], tuple[Array, ...]]:
    """What members do to each leaf that one of them changes, in the order of the tree.

    Args:
        base: the params, untied where members need it.
        members: by number.
        layout: where sites lie.
        room: for how many members there is room; a kind has it in proportion.

    Returns:
        The leaves; and for each group of kinds, whose its slots are: members' numbers, or -1.
    """
    found: dict[str, dict[int, Factored]] = {}
    for number, member in members.items():
        for name, leaf in of_member(base, member, layout).items():
            found.setdefault(name, {})[number] = leaf
    groups: dict[tuple[str, tuple[int, ...]], int] = {}
    owners: list[Array] = []

    def take(side: str, numbers: Sequence[int]) -> tuple[int, int]:
        slots = -(-len(numbers) * room // len(members))
        if (side, tuple(numbers)) not in groups:
            groups[side, tuple(numbers)] = len(owners)
            owners.append(jnp.asarray([*numbers, *[-1] * (slots - len(numbers))], np.int32))
        return groups[side, tuple(numbers)], slots

    names = [name for name in factored_by_name(base) if name in found]
    leaves = tuple(kept(name, found[name], take) for name in names)
    return leaves, tuple(owners)


def exchanged(
    leaves: Sequence[Kept],
    owners: Sequence[Array],
    number: int,
    new: Mapping[str, Factored],
) -> tuple[tuple[Kept, ...], tuple[Array, ...]] | None:
    """The same with another member in free slots.

    Args:
        leaves: what members do; none of this number among them.
        owners: whose the slots are.
        number: the member's.
        new: by name, the leaves that it changes.

    Returns:
        Leaves and owners of the same structure; None where it does not fit into one.
    """
    named = {leaf.name: i for i, leaf in enumerate(leaves)}
    placed: dict[tuple[int, str, int], Any] = {}
    for name, leaf in new.items():
        things = leaves[named[name]].things(leaf) if name in named else None
        for side, own in (things or {}).items():
            kinds = leaves[named[name]].kinds[side]
            for thing in own:
                free = (k for k in range(len(kinds)) if (named[name], side, k) not in placed)
                at = next((k for k in free if kinds[k].key == key_of(thing)), None)
                if at is None:
                    return None
                placed[named[name], side, at] = thing
        if things is None:
            return None
    touched = {leaves[i].kinds[side][k].group for i, side, k in placed}
    if not all(bool((owners[group] < 0).any()) for group in touched):
        return None
    slots = {group: int(jnp.argmax(owners[group] < 0)) for group in touched}
    now: list[Kept] = []
    for i, leaf in enumerate(leaves):
        sides: dict[str, tuple[Kind, ...]] = {}
        for side, kinds in leaf.kinds.items():
            changed = list(kinds)
            for k, kind in enumerate(kinds):
                thing = placed.get((i, side, k))
                if kind.group not in touched:
                    continue
                # What it does not have it can have as a zero Δ, but not as an L or R.
                if thing is None and side != "shift":
                    return None
                changed[k] = written(kind, slots[kind.group], thing)
            sides[side] = tuple(changed)
        now.append(replace(leaf, kinds=sides))
    after = [
        owner.at[slots[group]].set(number) if group in touched else owner
        for group, owner in enumerate(owners)
    ]
    return tuple(now), tuple(after)
