"""Sites and leaves whose names differ only by what PyTorch wrappers add."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from typing import get_args

from jaxmix.placement.layout import Layout, Part, Place
from jaxmix.placement.names import bare

__all__ = ["Spellings", "respelled"]


class Spellings:
    """Finds names that differ from those of a tree or file only by what wrappers add.

    Args:
        names: The names of the tree or the file.

    Example:
        >>> Spellings(["_orig_mod.h.0.q", "h.1.module.q"]).of("module.h.0.q")
        ('_orig_mod.h.0.q',)
    """

    def __init__(self, names: Iterable[str]):
        self._names = names

    @cached_property
    def _by_bare(self) -> Mapping[str, tuple[str, ...]]:
        found: dict[str, list[str]] = defaultdict(list)
        for name in self._names:
            found[bare(name)].append(name)
        return {name: tuple(names) for name, names in found.items()}

    def of(self, name: str) -> tuple[str, ...]:
        """Returns the names that are equal without wrappers; several if only wrappers differ."""
        return self._by_bare.get(bare(name), ())


def respelled(
    table: Layout, site: str, names: Collection[str], spellings: Spellings
) -> dict[Part, list[Place]]:
    """Returns the places of a site's weight and bias, under the leaves' own names.

    Args:
        table: The layout.
        site: The site's name.
        names: The names of the leaves.
        spellings: The same names, to look up spellings.

    Returns:
        The layout's places if one of them is a leaf, or if no other leaf matches. Otherwise the
        places of the leaves that differ from these by wrappers only. This order keeps a module from
        being confused with its neighbour ``module``.
    """
    parts: dict[Part, list[Place]] = {part: table.places(site, part) for part in get_args(Part)}
    if any(place.leaf in names for places in parts.values() for place in places):
        return parts
    others: dict[Part, list[Place]] = {
        part: [replace(p, leaf=leaf) for p in places for leaf in spellings.of(p.leaf)]
        for part, places in parts.items()
    }
    return others if any(others.values()) else parts
