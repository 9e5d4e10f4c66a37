"""LoRAs under the names that modules have in memory: the inverse of cutting.

A weight that is several on disk, such as the matrices of experts, is one in memory, and so are
their LoRAs: one behind the other along the rank, with B block-diagonal. A weight that is one on
disk and several in memory leaves each its rows of B, and all of A.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxmix.errors import UnsupportedError, listing
from jaxmix.families.base import Update
from jaxmix.families.expert_lora import ExpertLoRA
from jaxmix.families.lora import LoRA
from jaxmix.families.rows import rows_of
from jaxmix.placement.name_map import NameMap
from jaxmix.placement.regions import WHOLE, Piece, Region

__all__ = ["with_memory_names"]


def with_memory_names(updates: Mapping[str, Update], names: NameMap) -> dict[str, Update]:
    """Returns updates by the names that their modules have in memory.

    Args:
        updates: ``{site: update}``, with names on disk or in memory.
        names: How the model's tensors are renamed when its checkpoint is loaded.

    Returns:
        ``{site: update}``: LoRAs of weights that are one in memory are joined, and a LoRA of a
        weight that is several there is split.

    Raises:
        UnsupportedError: If an update that is not a plain LoRA would have to be joined or split.

    Example:
        >>> from jaxmix.layout import map_named
        >>> one = LoRA(np.ones((1, 3)), np.ones((2, 1)), 1.0)
        >>> sites = {f"model.layers.0.mlp.experts.{e}.down_proj": one for e in range(4)}
        >>> found = with_memory_names(sites, map_named("qwen3_moe"))
        >>> [(site, update.size()) for site, update in found.items()]
        [('model.layers.0.mlp.experts.down_proj', '4 × rank 1')]
    """
    made: dict[str, Update] = {}
    groups: dict[str, dict[Region, LoRA]] = {}
    problems: list[str] = []
    for site, update in updates.items():
        for piece in _pieces(site, names):
            name = piece.name.removesuffix(".weight")
            if piece.own == piece.of == WHOLE and not piece.is_transposed and not piece.heads:
                made[name] = update
                continue
            part = _part(update, piece.own)
            if part is None or piece.problem or piece.is_transposed or piece.heads:
                problems.append(f"{site}: {update.family}, for {name} in memory")
            elif piece.of == WHOLE:
                made[name] = part
            else:
                groups.setdefault(name, {})[piece.of] = part
    if problems:
        raise UnsupportedError(
            f"updates that can't be joined or split as {names.name} is in memory:"
            f"{listing(problems)}\nOnly plain LoRAs can: jaxmix.to_lora makes one of any mix."
        )
    # PEFT nests the parameters of a module as it registers them, which is the table's order.
    order = [target for transform in names.transforms for target in transform.targets]
    ranked = sorted(groups, key=lambda name: _position(name, order))
    return made | {name: _joined(groups[name]) for name in ranked}


def _position(name: str, targets: list[str]) -> int:
    """The position of the first target with which a tensor's name ends."""
    found = (i for i, target in enumerate(targets) if name.endswith(target.lstrip(".")))
    return next(found, len(targets))


def _pieces(site: str, names: NameMap) -> tuple[Piece, ...]:
    """Where a site's weight is in memory, or the leaf that the site is itself."""
    for tensor in (f"{site}.weight", site):
        pieces = names.loaded([tensor])[tensor]
        if pieces != (Piece(tensor),):
            return pieces
    return (Piece(f"{site}.weight"),)


def _part(update: Update, own: Region) -> LoRA | None:
    """The part of a plain LoRA that a weight in memory has."""
    if not isinstance(update, LoRA) or update.magnitude is not None or update.embedding:
        return None
    if own == WHOLE:
        return None if update.bias is not None else update
    shape = update.b.shape[0], update.a.shape[1]
    rows = own.rows(shape[0])
    found = None if rows is None or own.axis else rows_of(update, rows, shape)
    return found if isinstance(found, LoRA) else None


def _joined(parts: Mapping[Region, LoRA]) -> Update:
    """One LoRA of the weight that several weights are in memory."""
    like = next(iter(parts))
    experts = 1 + max(region.expert for region in parts)
    numbers = range(experts) if like.expert >= 0 else [-1]
    any_one = next(iter(parts.values()))
    columns, dtype = any_one.a.shape[1], np.asarray(any_one.a).dtype
    blocks: list[tuple[np.ndarray, np.ndarray]] = []
    for part in range(like.parts):
        own = {region.expert: lora for region, lora in parts.items() if region.part == part}
        rank = max((lora.a.shape[0] for lora in own.values()), default=0)
        # A part without a LoRA has the rows of the others, if all have equally many.
        sizes = {lora.b.shape[0] for lora in (own or parts).values()}
        rows = like.sizes[part] if any(like.sizes) else max(sizes)
        a = np.zeros((len(numbers), rank, columns), dtype)
        b = np.zeros((len(numbers), rows, rank), dtype)
        for at, number in enumerate(numbers):
            if (lora := own.get(number)) is not None:
                own_rank = lora.a.shape[0]
                a[at, :own_rank] = lora.a
                b[at, :, :own_rank] = np.asarray(lora.b) * np.asarray(lora.scale, b.dtype)
        blocks.append((a, b))
    a = np.concatenate([block for block, _ in blocks], axis=1)
    b = _block_diagonal([block for _, block in blocks])
    a, b = _as_factors(a, b) if like.expert >= 0 else _as_factors(a[0], b[0])
    return ExpertLoRA(a, b, 1.0) if like.expert >= 0 else LoRA(a, b, 1.0)


def _as_factors(a: Any, b: Any) -> tuple[Any, Any]:
    """Factors may be NumPy's arrays, though the families' fields say JAX's."""
    return a, b


def _block_diagonal(blocks: list[np.ndarray]) -> np.ndarray:
    """Stacks of matrices (n, out, r), one below and beside the other."""
    rows = [block.shape[1] for block in blocks]
    ranks = [block.shape[2] for block in blocks]
    out = np.zeros((blocks[0].shape[0], sum(rows), sum(ranks)), blocks[0].dtype)
    top = left = 0
    for block, height, width in zip(blocks, rows, ranks, strict=True):
        out[:, top : top + height, left : left + width] = block
        top, left = top + height, left + width
    return out
