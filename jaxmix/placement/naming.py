"""Renames adapters to a tree's names where they differ, by a name map that is given or found."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from jaxmix.errors import LayoutError, UnsupportedError, listing, option
from jaxmix.families.base import Update
from jaxmix.placement.canonical import Modules
from jaxmix.placement.cutting import cut_where_shared, updates_on, with_places
from jaxmix.placement.fused import in_order
from jaxmix.placement.inferring import candidates, inferred
from jaxmix.placement.joining import with_memory_names, with_original_names
from jaxmix.placement.layout import Layout, named
from jaxmix.placement.name_map import NameMap
from jaxmix.placement.regions import has_swapped_halves
from jaxmix.placement.sites import UnplacedError
from jaxmix.placement.tree import Tree
from jaxmix.registry import NAME_MAPS

__all__ = [
    "Names",
    "OnTree",
    "Part",
    "listing_tried_names",
    "map_named",
    "on_tree",
    "renamed_parts",
]

# What callers pass as ``names``: a model type, a config, "" for no map, None to find it.
Names = str | Mapping[str, Any] | None


class Part(Protocol):
    """An adapter of a mix; this module needs only its name and updates."""

    @property
    def name(self) -> str:
        """Its name in messages."""
        ...

    @property
    def updates(self) -> Mapping[str, Update]:
        """``{site: update}``."""
        ...


P = TypeVar("P", bound=Part)
T = TypeVar("T")


@dataclass(frozen=True)
class OnTree(Generic[P]):
    """Adapters under the names of a tree.

    Args:
        parts: The adapters.
        layout: Where their sites are.
        original: ``{site: the adapters' own name}`` for the modules that have another one there.
    """

    parts: Sequence[P]
    layout: Layout | str | None
    original: Mapping[str, str] = field(default_factory=dict)


_NO_MAP = " No name map matches all of them to leaves."


def map_named(names: str | Mapping[str, Any]) -> NameMap:
    """Returns the name map that a caller chose.

    Args:
        names: A model type, such as ``"mixtral"``, or a config.

    Returns:
        The map.

    Raises:
        LayoutError: If there is no such map.

    Example:
        >>> from jaxmix.layout import map_named
        >>> map_named("mixtral").prefix
        'model'

    Source: ``jaxmix/converters/names``, tables generated from transformers and diffusers.
    """
    config = {"model_type": names} if isinstance(names, str) else names
    found = next((m for find, _ in NAME_MAPS if (m := find(config)) is not None), None)
    if found is None:
        shown = names if isinstance(names, str) else names.get("model_type")
        raise LayoutError(
            f"there is no name map {shown!r}, expected the model_type of one of transformers' "
            "models, such as 'mixtral', '' for no map, or nothing to find it."
        )
    return found


def on_tree(
    work: Callable[[OnTree[P]], T],
    parts: Sequence[P],
    params: Any,
    layout: Layout | str | None,
    names: Names,
    *,
    joins: bool = False,
) -> T:
    """Calls a function with adapters, renamed to a tree's names if the tree lacks their own.

    Args:
        work: The function. It may be called several times with other names, so it must not change
            anything before it has placed all sites.
        parts: The adapters.
        params: The tree.
        layout: Where sites are; None to infer it from the leaves.
        names: The name map, ``""`` for none, None to find it.
        joins: Whether the function can apply one update to several weights together
            (`jaxmix.apply.joined`); if not, such an update is an error.

    Returns:
        What the function returns.
    """
    if names:
        modules = Modules(map_named(names), _shapes(params))
        with listing_tried_names(modules):
            return work(renamed_parts(parts, modules, layout, joins=joins))
    try:
        return work(OnTree(parts, layout))
    except UnplacedError as error:
        if names is not None or error.lacks_only_biases:
            raise
        shapes = _shapes(params)
        found = inferred([site for part in parts for site in part.updates], shapes)
        if found is None:
            for parts_in_memory in _in_memory(parts):
                with suppress(UnplacedError):
                    return work(OnTree(parts_in_memory, layout))
            raise _extended(error, _NO_MAP) from None
        renamed = renamed_parts(parts, Modules(found, shapes), layout, joins=joins)
    return work(renamed)


def _in_memory(parts: Sequence[P]) -> Iterator[list[P]]:
    """Yields the adapters under diffusers' names, for each image model that has original names too.

    A JAX library's layout may lack the original names, for instance those of fused layers, and the
    names of its leaves do not show which model it is. Only the fused layers are renamed at first,
    since a layout may know the other layers only by their original names. Last come layers whose
    halves are swapped in diffusers, where the library keeps the original order.
    """
    for candidate in candidates(NAME_MAPS):
        if candidate.templates is None:
            continue
        for rename in (_split, _renamed, _in_original_order):
            try:
                found = [rename(part.updates, candidate) for part in parts]
            except UnsupportedError:
                continue
            if any(new.keys() != p.updates.keys() for new, p in zip(found, parts, strict=True)):
                yield [replace(p, updates=new) for p, new in zip(parts, found, strict=True)]  # pyright: ignore


def _renamed(updates: Mapping[str, Update], names: NameMap) -> dict[str, Update]:
    """All updates under the names in memory."""
    return with_memory_names(updates, names, keep_rows=True)


def _split(updates: Mapping[str, Update], names: NameMap) -> dict[str, Update]:
    """The updates, with those of fused modules under the names of their parts in memory."""
    fused = {site: u for site, u in updates.items() if len(_renamed({site: u}, names)) > 1}
    return {site: u for site, u in updates.items() if site not in fused} | _renamed(fused, names)


def _in_original_order(updates: Mapping[str, Update], names: NameMap) -> dict[str, Update]:
    """The updates of modules whose halves are swapped in memory by their original names."""
    assert names.templates is not None
    shown = {site: [p for _, p in names.templates.stored(site)] for site in updates}
    swapped = {s: updates[s] for s, found in shown.items() if any(map(has_swapped_halves, found))}
    unchanged = {site: update for site, update in updates.items() if site not in swapped}
    return unchanged | with_original_names(swapped, names)


@contextmanager
def listing_tried_names(modules: Modules | None) -> Iterator[None]:
    """Adds the other names under which sites were looked up to the error for sites without a leaf.

    Args:
        modules: The modules by their names in memory; None if there is no name map.
    """
    try:
        yield
    except UnplacedError as error:
        if modules is None:
            raise _extended(error, _NO_MAP) from None
        looked_up = {site: list(dict.fromkeys(modules.tried(site))) for site in error.sites}
        lines = [f"{site}: {', '.join(names)}" for site, names in looked_up.items() if names]
        message = (
            "\nNames were also compared by the name map of "
            f"{modules.names.name}{f':{listing(lines)}' if lines else ''}"
            f"{chr(10) if lines else '; '}"
            f"{'F' if lines else 'f'}or another model, pass its type: {option('names', '…')}."
        )
        raise _extended(error, message) from None


def _extended(error: UnplacedError, text: str) -> UnplacedError:
    """The same error, with more text."""
    return UnplacedError(lambda: f"{error}{text}", error.sites)


def renamed_parts(
    parts: Sequence[P], modules: Modules, layout: Layout | str | None, *, joins: bool = False
) -> OnTree[P]:
    """Returns adapters, renamed to the names of a tree's modules.

    Args:
        parts: The adapters.
        modules: The tree's modules.
        layout: The layout.
        joins: As in `on_tree`.
    """
    found = [updates_on(part.updates, modules, part.name, joins=joins) for part in parts]
    found = cut_where_shared(found, modules.shapes, joins=joins)
    updates = in_order([renamed.updates for renamed in found])
    new = [replace(part, updates=renamed) for part, renamed in zip(parts, updates, strict=True)]  # pyright: ignore
    places = {site: place for r in found for site, place in r.places.items()}
    original = {new: old for r in found for new, old in r.original.items()}
    return OnTree(new, with_places(named(layout), places) if places else layout, original)


def _shapes(params: Any) -> dict[str, tuple[int, ...]]:
    """The shape of each leaf of a tree by its name."""
    tree = Tree.of(params)
    return {name: tuple(np.shape(tree.leaves[at])) for name, at in tree.positions.items()}
