"""Checks whether leaves can take updates, and whether sites overlap in a leaf."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import combinations
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmix.errors import LayoutError
from jaxmix.placement.buffers import is_deleted
from jaxmix.placement.place import Place
from jaxmix.placement.quantized import is_quantized
from jaxmix.placement.sites import Site
from jaxmix.placement.tree import Tree

__all__ = ["overlaps", "unusable"]


def unusable(tree: Tree, sites: Iterable[Site]) -> Iterator[str]:
    """Describes the leaves that can't take an update, each with the reason.

    Args:
        tree: The params.
        sites: The sites, with their places.

    Yields:
        A line for each.
    """
    for site in sites:
        if any(map(is_deleted, jax.tree.leaves(site.chain))):
            yield f"{site.name}: the buffer of a factor was donated or deleted; load it again"
        for place in (site.weight, site.bias):
            if place is None:
                continue
            if reason := _unfit(leaf := tree.leaf(place)):
                yield f"{site.name}: {place.leaf} {reason}"
                continue
            try:
                if not place.shape(leaf.shape):
                    yield f"{site.name}: {place.leaf} is a scalar, expected a tensor with axes"
            except LayoutError as error:
                yield f"{site.name}: {error}"


def _unfit(leaf: Any) -> str | None:
    """Returns why a leaf can't take an update; None if it can."""
    if not isinstance(leaf, jax.Array | np.ndarray) and not is_quantized(leaf):
        return f"is a {type(leaf).__name__}"
    if isinstance(leaf, np.ma.MaskedArray):
        return "is a masked array; fill it: np.ma.filled(array, 0)"
    if is_deleted(leaf):
        return "was donated (donate=True) or deleted; use the params that compose returned"
    if not jnp.issubdtype(leaf.dtype, jnp.floating) or jnp.finfo(leaf.dtype).bits < 16:
        return f"has dtype {leaf.dtype}; dequantize or cast it first"
    if jax.dtypes.canonicalize_dtype(leaf.dtype) != leaf.dtype:
        return (
            f"has dtype {leaf.dtype}, which needs jax.config.update('jax_enable_x64', True), or "
            "cast it"
        )
    return None


def overlaps(tree: Tree, sites: Iterable[Site]) -> Iterator[str]:
    """Describes leaves in which two sites, or a weight and a bias, overlap.

    Args:
        tree: The params.
        sites: The sites, with places that fit their leaves.

    Yields:
        A line for each pair.
    """
    occupants: dict[str, list[tuple[str, Place]]] = defaultdict(list)
    for site in sites:
        for part, place in (("weight", site.weight), ("bias", site.bias)):
            if place is not None:
                occupants[place.leaf].append((f"{site.name}'s {part}", place))
    for leaf, places in occupants.items():
        if len(places) == 1:
            continue
        shape = tree.leaves[tree.positions[leaf]].shape
        selected = [(owner, place.ranges(shape)) for owner, place in places]
        # Layers and experts are numerous, with one index each: only equal indices are compared.
        axes = [k for k in range(len(shape)) if all(len(ranges[k]) == 1 for _, ranges in selected)]
        groups: dict[tuple[int, ...], list[tuple[str, tuple[range, ...]]]] = defaultdict(list)
        for owner, ranges in selected:
            groups[tuple(ranges[k][0] for k in axes)].append((owner, ranges))
        for group in groups.values():
            for (owner, first), (other, second) in combinations(group, 2):
                if all(not set(a).isdisjoint(b) for a, b in zip(first, second, strict=True)):
                    yield f"{leaf}: {owner} and {other}"
