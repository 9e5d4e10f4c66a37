"""Chooses a layout if none is given: by the leaves' names, or the one library that fits."""

import re
from collections.abc import Callable, Mapping, Sequence

from jaxmix.errors import LayoutError, listing, option
from jaxmix.families.base import Chain
from jaxmix.placement.inverse import sites_of
from jaxmix.placement.layout import NAMES, Layout, libraries
from jaxmix.placement.roles import Roles
from jaxmix.placement.sites import Site, placed
from jaxmix.placement.tree import Tree
from jaxmix.placement.tree_layout import own_layout

__all__ = ["chosen", "library"]


def chosen(
    tree: Tree, chains: Mapping[str, Chain], fits: Callable[[Sequence[Site]], bool]
) -> tuple[Layout, list[Site] | None]:
    """Finds the layout under which all sites have a leaf, and the sites with their places.

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
    sites, unplaced = placed(tree, chains, NAMES, is_strict=True)
    if not unplaced and not _has_axes(tree, sites):
        return NAMES, sites
    tree_table = own_layout(Roles(tree))
    tree_sites, tree_unplaced = (
        ([], [None]) if tree_table is None else placed(tree, chains, tree_table, is_strict=True)
    )
    if tree_table is not None and not tree_unplaced and fits(tree_sites):
        return tree_table, tree_sites
    if not unplaced:
        return NAMES, sites
    # NAMES was tried above, and the other layouts by name find no more than it does.
    tables = [table for table in libraries().values() if not table.by_name]
    found = [(table, placed(tree, chains, table, is_strict=True)) for table in tables]
    named = [(table, sites) for table, (sites, unplaced) in found if not unplaced]
    if not named and tree_table is not None and not tree_unplaced:
        return tree_table, tree_sites
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
    """The error for several layouts that fit and read a leaf differently."""
    lines = [f"{site}: {layout.name!r} and {rival.name!r}" for site, rival in others]
    names = list(dict.fromkeys([layout.name, *(rival.name for _, rival in others)]))
    return LayoutError(
        f"several layouts fit the params, {' and '.join(map(repr, names))}, and read "
        f"leaves differently:{listing(lines)}\nChoose one: "
        f"{' or '.join(option('layout', name) for name in names)}."
    )


def _has_axes(tree: Tree, sites: Sequence[Site]) -> bool:
    """Whether a site's weight has more than two axes: of layers, heads, or a convolution."""
    return any(len(getattr(tree.leaf(s.weight), "shape", ())) > 2 for s in sites if s.weight)


def _others(tree: Tree, found: Sequence[tuple[Layout, Sequence[Site]]]) -> list[tuple[str, Layout]]:
    """The layouts that read some site differently from the first, each with the first such site."""
    rivals: list[tuple[str, Layout]] = []
    (_, first), *later = found
    for table, sites in later:
        for site, other in zip(first, sites, strict=True):
            if not _same(tree, site, other):
                rivals.append((site.name, table))
                break
    return rivals


def _same(tree: Tree, ours: Site, theirs: Site) -> bool:
    """Whether two layouts read a site alike."""
    for place, other in ((ours.weight, theirs.weight), (ours.bias, theirs.bias)):
        if place == other:
            continue
        if place is None or other is None or place.leaf != other.leaf:
            return False
        try:
            if not place.same(other, tuple(tree.leaf(place).shape)):
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
    """Whether all layers read and write states of one width, as they must if the axes are right."""
    ins = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
    widths = {size[1] for site, size in sizes.items() if site.endswith(ins)}
    return len(widths | {z[0] for s, z in sizes.items() if s.endswith(("o_proj", "down_proj"))}) < 2
