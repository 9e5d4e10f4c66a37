"""Chooses a layout if none is given: by the leaves' names, or the one library that fits."""

import re
from collections.abc import Callable, Mapping, Sequence

from jaxmix.errors import LayoutError, listing
from jaxmix.families.base import Chain
from jaxmix.placement.inverse import sites_of
from jaxmix.placement.layout import NAMES, Layout, libraries
from jaxmix.placement.own import own_layout
from jaxmix.placement.roles import Roles
from jaxmix.placement.sites import Site, placed
from jaxmix.placement.tree import Tree

__all__ = ["chosen", "library"]


def chosen(
    tree: Tree, chains: Mapping[str, Chain], fits: Callable[[Sequence[Site]], bool]
) -> tuple[Layout, list[Site] | None]:
    """Finds the layout by which all sites have a leaf, and the sites with their places.

    Leaves that are named after their sites need no table, and neither do stacked layers and heads
    that the tree itself shows (`placement.roles`). Otherwise the tables of the model libraries are
    tried, by the names of leaves, and if several match, by shapes.

    Args:
        tree: The params.
        chains: ``{site: chain}``.
        fits: Returns whether sites with these places fit the shapes of their leaves.

    Returns:
        The layout and the sites; if none finds all sites, the one that finds the most, and None.

    Raises:
        LayoutError: If several layouts fit and differ.
    """
    sites, lost = placed(tree, chains, NAMES, is_strict=True)
    if not lost and not _has_axes(tree, sites):
        return NAMES, sites
    own = own_layout(Roles(tree))
    ours, missing = ([], [None]) if own is None else placed(tree, chains, own, is_strict=True)
    if own is not None and not missing and fits(ours):
        return own, ours
    if not lost:
        return NAMES, sites
    # NAMES is tried already; the other layouts by name find no more than it does.
    tables = [table for table in libraries().values() if not table.by_name]
    found = [(table, placed(tree, chains, table, is_strict=True)) for table in tables]
    named = [(table, sites) for table, (sites, lost) in found if not lost]
    if not named and own is not None and not missing:
        return own, ours
    if not named:
        misses = {table: len(placed(tree, chains, table)[1]) for table in (NAMES, *tables)}
        return min(misses, key=misses.__getitem__), None
    if not _others(tree, named):
        return named[0]
    shaped = [(table, sites) for table, sites in named if fits(sites)]
    if not shaped:
        return named[0]
    if others := _others(tree, shaped):
        raise _ambiguous(shaped[0][0], others)
    return shaped[0]


def _ambiguous(layout: Layout, others: Sequence[tuple[str, Layout]]) -> LayoutError:
    """The error for layouts that read a leaf differently."""
    lines = [f"{site}: {layout.name!r} and {rival.name!r}" for site, rival in others]
    names = list(dict.fromkeys([layout.name, *(rival.name for _, rival in others)]))
    return LayoutError(
        f"several layouts fit the params, {' and '.join(map(repr, names))}, and read "
        f"leaves differently:{listing(lines)}\nSay which it is: "
        f"{' or '.join(f'layout={name!r}' for name in names)}."
    )


def _has_axes(tree: Tree, sites: Sequence[Site]) -> bool:
    """Whether a site's weight has more than two axes: of layers, heads, or a convolution."""
    return any(len(getattr(tree.leaf(s.weight), "shape", ())) > 2 for s in sites if s.weight)


def _others(tree: Tree, found: Sequence[tuple[Layout, Sequence[Site]]]) -> list[tuple[str, Layout]]:
    """The layouts that read some site differently from the first, each with the first such site."""
    others: list[tuple[str, Layout]] = []
    (_, first), *rest = found
    for table, sites in rest:
        for ours, theirs in zip(first, sites, strict=True):
            if not _same(tree, ours, theirs):
                others.append((ours.name, table))
                break
    return others


def _same(tree: Tree, ours: Site, theirs: Site) -> bool:
    """Whether two layouts read a site alike."""
    for mine, other_place in ((ours.weight, theirs.weight), (ours.bias, theirs.bias)):
        if mine == other_place:
            continue
        if mine is None or other_place is None or mine.leaf != other_place.leaf:
            return False
        try:
            if not mine.same(other_place, tuple(tree.leaf(mine).shape)):
                return False
        except (AttributeError, IndexError, LayoutError, ValueError):
            return False
    return True


def library(shapes: Mapping[str, tuple[int, ...]]) -> list[Layout]:
    """Returns the layouts of model libraries that match the names and shapes of a tree's leaves.

    Args:
        shapes: The shape of each leaf, by its dotted name.

    Returns:
        Those that find the most linear layers, including an attention's; empty if no library
        matches.

    Example:
        >>> [layout.name for layout in library({"layers.0.attn.q_proj.w": (4, 2, 3)})]
        ['tunix']
    """
    best: list[Layout] = []
    most = 0
    for table in libraries().values():
        if table.by_name:
            continue
        sizes = {
            site: place.shape(shapes[place.leaf])
            for site, place in sites_of(table, shapes).items()
            if re.search(r"(^|\.)layers\.", site)
        }
        linear = {site: size for site, size in sizes.items() if len(size) == 2}
        if not any("attn." in site for site in linear) or not _is_one_width(linear):
            continue
        if len(linear) > most:
            best, most = [], len(linear)
        if len(linear) == most:
            best.append(table)
    return best


def _is_one_width(sizes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether all layers read and write states of one width, as they do if the axes are right."""
    ins = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
    widths = {size[1] for site, size in sizes.items() if site.endswith(ins)}
    return len(widths | {z[0] for s, z in sizes.items() if s.endswith(("o_proj", "down_proj"))}) < 2
