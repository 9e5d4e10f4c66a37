"""Renames tunix's LoRA to Hugging Face's names, which match tunix's models and all others."""

import re
from collections.abc import Sequence
from typing import Any

from jaxmix.converters.adapters.qwix.pairs import Pair
from jaxmix.families import LoRA, Update
from jaxmix.placement.inverse import sites_of
from jaxmix.placement.layout import Layout, Place, named
from jaxmix.placement.place import atoms

__all__ = ["tunix_updates"]

# Names of attention modules that only tunix uses.
_TUNIX_ATTENTION = re.compile(r"layers\.\d+\.attn\.([qkvo]_proj|(q|kv|qkv|attn_vec)_einsum)\.w")


def tunix_updates(
    pairs: Sequence[Pair], alpha: float, *, is_tunix: bool
) -> dict[str, Update] | None:
    """Returns the updates of a tree of tunix, by Hugging Face's names.

    Args:
        pairs: The pairs of the tree.
        alpha: The alpha of qwix's rule.
        is_tunix: Whether the tree is known to be of tunix; otherwise its attention must show it.

    Returns:
        ``{site: LoRA}``; None if the leaves are not those of a model of tunix.
    """
    if not (is_tunix or any(_TUNIX_ATTENTION.fullmatch(pair.leaf) for pair in pairs)):
        return None
    for table in (named("tunix"), named("tunix_gemma")):
        updates: dict[str, Update] = {}
        for pair in pairs:
            pair_updates = {} if pair.origin != "qwix" else _sites(pair, table, alpha)
            if not pair_updates:
                break
            updates.update(pair_updates)
        else:
            return updates
    return None


def _sites(pair: Pair, table: Layout, alpha: float) -> dict[str, Update]:
    """The sites of a leaf, which may be shared by several."""
    updates: dict[str, Update] = {}
    for rule in (rule for rule in table.rules if rule.part == "weight" and rule.axes):
        shape = _shape(pair, rule.axes, rule.index)
        places = {} if shape is None else sites_of(Layout("", (rule,)), {pair.leaf: shape})
        for site, place in places.items():
            updates[site] = _cut(pair, place, alpha)
    return updates


def _shape(pair: Pair, axes: str | None, index: str | None) -> tuple[int, ...] | None:
    """The shape of the factors' leaf by the pattern of a rule; None if they do not fit."""
    names, (rows, cols) = _sides(axes or "")
    ins, outs = pair.a.shape[:-1], pair.b.shape[1:]
    leading = () if index is None else outs[:1]
    if (
        len(ins) != len(cols)
        or len(outs) - len(leading) != len(rows)
        or pair.b.shape[0] != pair.a.shape[-1]
    ):
        return None
    sizes = dict(zip((*cols, *rows), (*ins, *outs[len(leading) :]), strict=True))
    return (*leading, *(sizes[name] for name in names))


def _sides(axes: str) -> tuple[list[str], tuple[list[str], list[str]]]:
    """The axes of a leaf, and those of its rows and columns, in the leaf's order."""
    left, right = axes.split("->")
    names = [name for group in atoms(left) for name in group]
    rows, cols = (sorted(group, key=names.index) for group in atoms(right))
    return names, (rows, cols)


def _cut(pair: Pair, place: Place, alpha: float) -> Update:
    """The LoRA of one site of a leaf."""
    a, b = pair.a, pair.b
    rank = a.shape[-1]
    part: Any = b if place.index is None else b[:, int(place.index)]
    return LoRA(a.reshape(-1, rank).T, part.reshape(rank, -1).T, alpha / rank)
