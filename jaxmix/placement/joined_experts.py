"""Joins the LoRAs of single experts into one LoRA of their stack, with block-diagonal B."""

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
    """Joins the LoRAs of a stack's matrices, or of parts of them, into one LoRA of the stack.

    Args:
        parts: The LoRAs by the part of the stack that each changes.
    """
    like = next(iter(parts))
    numbers = range(1 + max(region.expert for region in parts))
    first = next(iter(parts.values()))
    columns, dtype = first.a.shape[1], np.asarray(first.a).dtype
    blocks: list[tuple[np.ndarray, np.ndarray]] = []
    for part in range(like.parts):
        loras = {region.expert: lora for region, lora in parts.items() if region.part == part}
        rank = max((lora.a.shape[0] for lora in loras.values()), default=0)
        # A part without a LoRA has the rows of the others, if all have equally many.
        sizes = {lora.b.shape[0] for lora in (loras or parts).values()}
        rows = like.sizes[part] if any(like.sizes) else max(sizes)
        a = np.zeros((len(numbers), rank, columns), dtype)
        b = np.zeros((len(numbers), rows, rank), dtype)
        for at, number in enumerate(numbers):
            if (lora := loras.get(number)) is not None:
                lora_rank = lora.a.shape[0]
                a[at, :lora_rank] = lora.a
                b[at, :, :lora_rank] = np.asarray(lora.b) * np.asarray(lora.scale, b.dtype)
        blocks.append((a, b))
    a = np.concatenate([block for block, _ in blocks], axis=1)
    b = _block_diagonal([block for _, block in blocks])
    return ExpertLoRA(*_as_factors(a, b), 1.0)


def _as_factors(a: Any, b: Any) -> tuple[Any, Any]:
    """Hides from the type checker that the factors are NumPy's arrays instead of JAX's."""
    return a, b


def _block_diagonal(blocks: list[np.ndarray]) -> np.ndarray:
    """Joins stacks of matrices (n, out, r) block-diagonally."""
    rows = [block.shape[1] for block in blocks]
    ranks = [block.shape[2] for block in blocks]
    out = np.zeros((blocks[0].shape[0], sum(rows), sum(ranks)), blocks[0].dtype)
    top = left = 0
    for block, height, width in zip(blocks, rows, ranks, strict=True):
        out[:, top : top + height, left : left + width] = block
        top, left = top + height, left + width
    return out


def plain_lora(update: Update) -> LoRA:
    """Returns an update that must be a plain LoRA: no magnitude, embedding or bias.

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
