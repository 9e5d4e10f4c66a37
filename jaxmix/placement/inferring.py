"""Finds the name map of a model from the names of its leaves and of an adapter's sites."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from jaxmix.errors import LayoutError, option
from jaxmix.placement.canonical import Modules, Target, UnmappedError
from jaxmix.placement.name_map import NameMap
from jaxmix.registry import NAME_MAPS

__all__ = ["candidates", "inferred"]

# What finds the map of a config, and what lists all maps.
Registered = tuple[Callable[..., NameMap | None], Callable[[], Iterable[NameMap]]]


def inferred(sites: Iterable[str], shapes: Mapping[str, tuple[int, ...]]) -> NameMap | None:
    """Finds the name map under which all sites have a leaf, from the names alone.

    Args:
        sites: The sites of all adapters.
        shapes: The shape of each leaf, by its name.

    Returns:
        The map; None if there is none.

    Raises:
        LayoutError: If several fit and differ.
    """
    return _inferred(tuple(NAME_MAPS), tuple(sites), tuple(shapes.items()))


@lru_cache(maxsize=16)  # several hundred maps are tried, and the next call has the same names
def _inferred(
    registered: tuple[Registered, ...],
    sites: tuple[str, ...],
    leaves: tuple[tuple[str, tuple[int, ...]], ...],
) -> NameMap | None:
    """As `inferred`, with all that it depends on as arguments."""
    # Layers differ only by their numbers, so one of each kind is enough.
    shapes = dict(leaves)
    sample = {_zeroed(leaf): shape for leaf, shape in leaves}
    wanted = dict.fromkeys(map(_zeroed, sites))
    fits: dict[tuple[Any, ...], list[NameMap]] = {}
    for candidate in candidates(registered):
        # The numbers of a U-Net's blocks matter: its blocks are not alike.
        is_listed = candidate.templates is not None
        modules = Modules(candidate, shapes if is_listed else sample)
        if (answer := _answer(modules, sites if is_listed else wanted)) is not None:
            fits.setdefault(answer, []).append(candidate)
    if len(fits) > 1:
        names = [found[0].name for found in fits.values()]
        raise LayoutError(
            f"the sites of the adapters match the leaves by several models' names, which differ: "
            f"those of {', '.join(names)}. Say which: {option('names', names[0])}."
        )
    return next(iter(fits.values()))[0] if fits else None


def candidates(registered: Iterable[Registered]) -> Iterator[NameMap]:
    """Yields all registered name maps that differ.

    Args:
        registered: The entries of `jaxmix.registry.NAME_MAPS`.
    """
    seen: set[tuple[Any, ...]] = set()
    for _, maps in registered:
        for candidate in maps():
            key = (candidate.transforms, candidate.templates, candidate.prefix)
            if key not in seen:
                seen.add(key)
                yield candidate


def _answer(modules: Modules, sites: Iterable[str]) -> tuple[Any, ...] | None:
    """The targets of all sites under a map; None if a site has none."""
    answer: list[Any] = []
    for site in sites:
        targets = tuple(map(Target, modules.in_memory(site)))
        try:
            targets = targets or modules.targets(site)
        except UnmappedError:
            return None
        if not targets and site in modules.stored:
            targets = (Target(site),)
        if not targets:
            return None
        answer.append(tuple((t.site, t.cut, str(t.places)) for t in targets))
    return tuple(answer)


def _zeroed(name: str) -> str:
    return re.sub(r"(?<![^.])\d+(?![^.])", "0", name)
