"""LoRAs of single experts as one LoRA of their stack: one behind the other, B block-diagonal."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxmix.families.base import Update
from jaxmix.families.expert_lora import ExpertLoRA
from jaxmix.families.lora import LoRA
from jaxmix.placement.part_places import UnmappedError
from jaxmix.placement.regions import Region

__all__ = ["join_experts", "plain_lora", "position_of"]


def join_experts(parts: Mapping[Region, LoRA]) -> Update:
    """Returns one LoRA of a stack, of which each matrix, or parts of it, have LoRAs of their own.

    Args:
        parts: The LoRAs by the part of the stack that each changes.
    """
    like = next(iter(parts))
    numbers = range(1 + max(region.expert for region in parts))
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
    return ExpertLoRA(*_as_factors(a, b), 1.0)


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


def plain_lora(update: Update) -> LoRA:
    """Returns an update that is a LoRA without more, as those of experts must be.

    Args:
        update: The update.

    Raises:
        UnmappedError: If it is of another kind, or has a magnitude or a bias.
    """
    if not isinstance(update, LoRA) or update.magnitude is not None or update.embedding:
        raise UnmappedError
    if update.bias is not None:
        raise UnmappedError
    return update


def position_of(name: str, targets: list[str]) -> int:
    """Returns the position of the first target with which a tensor's name ends.

    Args:
        name: The tensor's name.
        targets: The ends of names, in order.
    """
    found = (i for i, target in enumerate(targets) if name.endswith(target.lstrip(".")))
    return next(found, len(targets))
