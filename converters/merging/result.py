"""The result of a merge: what it wrote, changed and left out."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from jaxmix.converters.merging.staged_output import Place
from jaxmix.converters.merging.quantized import is_packed
from jaxmix.converters.merging.rounding import Loss, Rounding, summed
from jaxmix.converters.merging.verifying import Verified
from jaxmix.converters.merging.merge_plan import Work

__all__ = ["Merged", "merge_result"]


@dataclass(frozen=True)
class Merged:
    """What `merge_checkpoint` wrote.

    Args:
        out: the folder, or the file.
        shards: its safetensors files.
        changed: the tensors that adapters changed; all others are the base's, byte for byte, or
            dequantized.
        copied: how many tensors are the base's.
        size: the bytes of all shards.
        untied: the head that was given a tensor of its own, if one was.
        left_out: the base's files that were not copied, each with the reason.
        dequantized: how many packed weights are bfloat16 now.
        resized: the tensors with more or fewer rows than the base's: the rows before and now.
        new_head: the class whose checkpoint it is by a head that the adapters brought; None if they
            brought none.
        resumed: how many shards a run before this one had written.
        rounding: the error of the one rounding to 16 bits, in all and of each tensor; None where
            nothing was rounded.
        verified: what reading the output back showed; None if it was not asked for.
    """

    out: Path
    shards: tuple[str, ...]
    changed: tuple[str, ...]
    copied: int
    size: int
    untied: str | None
    left_out: tuple[str, ...]
    dequantized: int = 0
    resized: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    new_head: str | None = None
    resumed: int = 0
    rounding: Rounding | None = None
    verified: Verified | None = None


def merge_result(work: Work, place: Place, resumed: int, proof: Verified | None) -> Merged:
    """What there is to tell of the output, all of whose shards are whole."""
    shards = work.checkpoint.shards
    losses = {
        name: Loss.of(told)
        for record in place.records(len(shards))
        for name, told in record["losses"].items()
    }
    changed = work.changed
    packed = sum(is_packed(tensor) for tensor in work.checkpoint.tensors.values())
    ours = dict.fromkeys((*changed, *work.recipes))
    return Merged(
        out=place.out,
        shards=tuple(shard.name for shard in shards),
        changed=changed,
        copied=len(work.checkpoint.tensors) - len(ours),
        size=work.checkpoint.size,
        untied=work.head,
        left_out=work.left_out,
        dequantized=packed,
        resized=dict(work.resized),
        new_head=work.new_head,
        resumed=resumed,
        rounding=summed({name: losses[name] for name in changed if name in losses}),
        verified=proof,
    )
