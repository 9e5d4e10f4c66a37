"""Renames updates to the names of modules in memory, or on disk, without a params tree.

Where several weights on disk, such as the matrices of experts, are one in memory, their LoRAs are
joined into one: concatenated along the rank, with a block-diagonal B. Where one weight on disk is
several in memory, each gets its rows of B and all of A. The other direction is the same with disk
and memory exchanged.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from jaxmix.errors import UnsupportedError, listing, option, to_lora_call
from jaxmix.families.base import Update
from jaxmix.families.joined_rows import join_rows
from jaxmix.families.lora import LoRA
from jaxmix.families.row_counts import matrix_shape, row_count
from jaxmix.families.rows import Rows, rows_of
from jaxmix.placement.joined_experts import join_experts, plain_lora, position_of
from jaxmix.placement.name_map import NameMap
from jaxmix.placement.part_places import UnmappedError
from jaxmix.placement.regions import WHOLE, Piece, Region

__all__ = ["described", "with_memory_names", "with_original_names"]


def with_memory_names(
    updates: Mapping[str, Update],
    names: NameMap,
    shapes: Mapping[str, tuple[int, ...]] = {},
    *,
    keep_rows: bool = False,
) -> dict[str, Update]:
    """Returns updates under the names that their modules have in memory.

    Args:
        updates: ``{site: update}``, with names on disk or in memory.
        names: How the model's tensors are renamed when its checkpoint is loaded.
        shapes: The shapes of weights, by module in memory or on disk, on which the order of rows
            may depend where an update does not state them.
        keep_rows: Whether rows that no other family can express remain `Rows`, which can be
            applied but not written; if not, they become a difference.

    Returns:
        ``{site: update}``: LoRAs of weights that are one in memory are joined, and a LoRA of a
        weight that is several there is split.

    Raises:
        UnsupportedError: If an update can't be joined or split, as most others than plain LoRAs.

    Example:
        >>> import numpy as np
        >>> from jaxmix.families import LoRA
        >>> from jaxmix.layout import map_named
        >>> lora = LoRA(np.ones((1, 3)), np.ones((2, 1)), 1.0)
        >>> sites = {f"model.layers.0.mlp.experts.{e}.down_proj": lora for e in range(4)}
        >>> found = with_memory_names(sites, map_named("qwen3_moe"))
        >>> [(site, update.size()) for site, update in found.items()]
        [('model.layers.0.mlp.experts.down_proj', '4 × rank 1')]
    """
    renamed: dict[str, Update] = {}
    experts: dict[str, dict[Region, LoRA]] = {}
    groups: dict[str, dict[Region, Update]] = {}
    problems: list[str] = []
    for site, update in updates.items():
        for piece in _pieces(site, update, names, shapes):
            name = piece.name.removesuffix(".weight")
            if name in renamed or piece.memory in groups.get(name, ()):
                problems.append(f"{name}: has several updates")
            if piece == Piece(piece.name):
                renamed[name] = update
                continue
            try:
                if piece.problem or piece.is_transposed or piece.heads:
                    raise UnmappedError
                if piece.memory.expert >= 0:
                    experts.setdefault(name, {})[piece.memory] = plain_lora(update)
                else:
                    groups.setdefault(name, {})[piece.memory] = _cut(
                        update, piece.disk, keep_rows=keep_rows
                    )
            except UnmappedError:
                reason = f", by {piece.problem}" if piece.problem else ""
                problems.append(f"{site}: {update.family}, for {name} in memory{reason}")
    for name, parts in groups.items():
        if name in renamed:
            problems.append(f"{name}: has several updates")
        try:
            renamed[name] = parts[WHOLE] if WHOLE in parts else _joined_rows(parts, {})
        except UnmappedError as error:
            problems.append(f"{name}: {error}")
    if problems:
        raise UnsupportedError(
            f"updates that can't be joined or split as the weights of {names.name} are in memory:"
            f"{listing(problems)}\nPlain LoRAs can: "
            f"{to_lora_call('mix')} makes one of any mix."
        )
    # PEFT nests the parameters of a module as it registers them, which is the table's order.
    order = [target for transform in names.transforms for target in transform.targets]
    ranked = sorted(experts, key=lambda name: position_of(name, order))
    return renamed | {name: join_experts(experts[name]) for name in ranked}


def with_original_names(
    updates: Mapping[str, Update],
    names: NameMap,
    shapes: Mapping[str, tuple[int, ...]] = {},
    *,
    without: str = "$^",
) -> dict[str, Update]:
    """Returns updates under the names that their modules have on disk, by a table of modules.

    Args:
        updates: ``{site: update}``, with names in memory or on disk, without a component's prefix.
        names: A name map with `Templates`.
        shapes: The shapes of weights, by module in memory or on disk, where a fused weight needs
            the sizes of parts that have no update.
        without: A pattern of names on disk that are not written, as the model does not use them.

    Returns:
        ``{site: update}``: updates of weights that are one on disk are joined.

    Raises:
        UnsupportedError: If they can't be joined, or the table has no such module; all are listed.

    Example:
        >>> import numpy as np
        >>> from jaxmix.families import LoRA
        >>> from jaxmix.layout import map_named
        >>> lora = LoRA(np.ones((1, 3)), np.ones((2, 1)), 1.0)
        >>> sites = [f"transformer_blocks.0.attn.to_{x}" for x in "qkv"]
        >>> joined = with_original_names(dict.fromkeys(sites, lora), map_named("flux"))
        >>> [(site, update.b.shape) for site, update in joined.items()]
        [('double_blocks.0.img_attn.qkv', (6, 1))]
    """
    table = names.templates
    assert table is not None
    renamed: dict[str, Update] = {}
    groups: dict[str, Sequence[Piece]] = {}
    problems: list[str] = []
    for site, update in updates.items():
        found = [item for item in table.stored(site) if not re.search(without, item[0])]
        if table.has_source(site):
            renamed[site] = update
        elif found:
            source, pieces = found[0]
            groups.setdefault(source, _in_order(pieces, source, update, shapes))
        else:
            problems.append(f"{site}: {names.name} has no module of this name")
    for source, pieces in groups.items():
        if source in shapes:
            pieces = [replace(p, disk=p.disk.fitted(shapes[source])) for p in pieces]
        parts: dict[Region, Update] = {}
        heights: dict[int, int] = {}
        for piece in pieces:
            site = piece.name.removesuffix(".weight")
            try:
                if piece.problem:
                    raise UnmappedError(
                        f"it has {piece.problem}: pass the base ({option('base', ...)})"
                    )
                if site in updates:
                    parts[piece.disk] = _cut(updates[site], piece.memory)
                elif site in shapes:
                    heights[piece.disk.part] = shapes[site][0]
            except UnmappedError as error:
                problems.append(f"{site}: {error}")
        sites = list(dict.fromkeys(piece.name.removesuffix(".weight") for piece in pieces))
        if source in renamed:
            problems.append(f"{source}: has several updates")
        try:
            if parts:
                renamed[source] = parts[WHOLE] if WHOLE in parts else _joined_rows(parts, heights)
        except UnmappedError as error:
            problems.append(f"{' and '.join(x for x in sites if x in updates)}: {error}")
    if problems:
        raise UnsupportedError(
            f"updates that can't be mapped to the names of {names.name}'s own project:"
            f"{listing(problems)}\nIf it is another model, pass its name: {option('names', ...)}. "
            f"{to_lora_call('mix')} makes a LoRA of any mix, which can be joined."
        )
    return renamed


def _pieces(
    site: str, update: Update, names: NameMap, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[Piece, ...]:
    """Where a site's weight is in memory, or the leaf itself if the site is a leaf."""
    for tensor in (f"{site}.weight", site):
        pieces = names.loaded([tensor])[tensor]
        if pieces != (Piece(tensor),):
            return _in_order(pieces, site, update, shapes)
    return (Piece(f"{site}.weight"),)


def _in_order(
    pieces: Sequence[Piece], site: str, update: Update, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[Piece, ...]:
    """Pieces whose order of rows depends on the weight's shape, by the shape of its update."""
    if not any(piece.swap_ratio for piece in pieces):
        return tuple(pieces)
    names = (site, *(piece.name.removesuffix(".weight") for piece in pieces))
    known = (shapes[name] for name in names if name in shapes)
    shape = next(known, None) or matrix_shape(update)
    return tuple(fitted for piece in pieces for fitted in piece.fitted(shape))


def _cut(update: Update, region: Region, *, keep_rows: bool = False) -> Update:
    """The part of an update that changes a region of its weight."""
    if region == WHOLE:
        return update
    count = row_count(update)
    shape = matrix_shape(update)
    if shape is not None:
        region = region.fitted(shape)
    rows = None if count is None or region.axis else region.rows(count)
    found = None if rows is None else rows_of(update, rows, shape or (count or 0, 0))
    if isinstance(found, Rows) and not keep_rows:
        # Rows that no family can express are written as a difference.
        found = join_rows([found], [found.stop - found.start])
    if found is None:
        raise UnmappedError(f"{described(update)} can't be cut into rows of its weight")
    return found


def _joined_rows(parts: Mapping[Region, Update], heights: Mapping[int, int]) -> Update:
    """Joins the updates of the parts of a fused weight into one.

    Args:
        parts: The updates, by the region that each changes.
        heights: The numbers of rows of parts without an update, where they are known.
    """
    like = next(iter(parts))
    counts = {r.part: n for r, update in parts.items() if (n := row_count(update)) is not None}
    known = {**heights, **counts}
    columns = next(filter(None, map(matrix_shape, parts.values())), (0, 0))[1]
    sizes = [_height(like, part, known, columns) for part in range(like.parts)]
    if None in sizes or like.alternates or like.axis:
        raise UnmappedError(
            f"has updates of {len(parts)} of the {like.parts} weights that are fused in it, and "
            f"the sizes of the others are unknown: pass the base ({option('base', ...)})"
        )
    each = {region.part: update for region, update in parts.items()}
    ordered = [each.get(part) for part in range(like.parts)]
    found = join_rows(ordered, [size or 0 for size in sizes])
    if found is None:
        kinds = dict.fromkeys(described(update) for update in parts.values())
        missing = "" if len(parts) == like.parts else f" of {len(parts)} of {like.parts} weights"
        raise UnmappedError(f"{' and '.join(kinds)}{missing} can't be joined into one update")
    return found


def _height(like: Region, part: int, known: Mapping[int, int], columns: int) -> int | None:
    """The number of rows of a part of a fused weight; None if nothing states it."""
    if part in known:
        return known[part]
    if not like.is_ratio:
        return like.sizes[part] if any(like.sizes) else next(iter(known.values()), None)
    if any(like.sizes):  # proportions
        other, size = next(iter(known.items()), (part, 0))
        return size * like.sizes[part] // like.sizes[other] or None
    # A square q, with k and v of one size.
    return columns or None if part == 0 else known.get(3 - part)


def described(update: Update) -> str:
    """Returns an update's family for messages, where a LoRA with a magnitude is a DoRA."""
    is_dora = isinstance(update, LoRA) and update.magnitude is not None
    return "DoRA" if is_dora else update.family
