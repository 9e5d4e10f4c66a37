"""A bank's leaves made of its members: every member attached, what they do put by leaf and kind."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax

from jaxmix.adapter import Adapter, Mixable
from jaxmix.bank.leaves import Kept, kept
from jaxmix.errors import AdapterError, listing
from jaxmix.mixing import Mix, mix
from jaxmix.placement.layout import Layout
from jaxmix.placement.names import leaf_names
from jaxmix.unmerged import attach
from jaxmix.unmerged.attaching import is_factored
from jaxmix.unmerged.leaf import Factored

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
    base: Any,
    members: Mapping[int, Mixable],
    layout: Layout | str | None,
    room: Callable[[int], int],
) -> tuple[Kept, ...]:
    """What members do to each leaf that one of them changes, in the order of the tree."""
    found: dict[str, dict[int, Factored]] = {}
    for number, member in members.items():
        for name, leaf in of_member(base, member, layout).items():
            found.setdefault(name, {})[number] = leaf
    names = [name for name in factored_by_name(base) if name in found]
    return tuple(kept(name, found[name], room) for name in names)


def capacity(asked: Any, count: int) -> int:
    """For how many members there is room."""
    if asked is None:
        return 1 << max(count - 1, 0).bit_length()
    if not isinstance(asked, int) or isinstance(asked, bool) or asked < max(count, 1):
        raise AdapterError(
            f"Bank: capacity is {asked!r}, expected a whole number from {max(count, 1)} on, the "
            "members."
        )
    return asked
