"""The result of a merge: what was written, changed and left out."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from jaxmix.converters.merging.merge_plan import MergePlan
from jaxmix.converters.merging.quantized import is_packed
from jaxmix.converters.merging.rounding import Loss, Rounding, summarize
from jaxmix.converters.merging.staged_output import StagedOutput
from jaxmix.converters.merging.verifying import Verified

__all__ = ["Merged", "merge_result"]


@dataclass(frozen=True)
class Merged:
    """A summary of what `merge_checkpoint` wrote.

    Args:
        out: The folder or file.
        shards: The names of its safetensors files.
        changed: The tensors that adapters changed; all others are the base's, byte for byte or
            dequantized.
        copied: The number of tensors that are the base's.
        size: The bytes of all shards.
        untied: The head that was given a separate tensor, if any.
        left_out: The base's files that were not copied, each with the reason.
        dequantized: The number of packed weights that were written in bfloat16.
        resized: The tensors with more or fewer rows than the base's: the rows before and after.
        new_head: The class of the output, if the adapters have a head that the base lacks.
        resumed: The number of shards that an earlier, interrupted run had written.
        rounding: The error of the one rounding to 16 bits, in total and by tensor; None where
            nothing was rounded.
        copies: All tensors that were untied, the head first: each is a copy of the base's tensor to
            which it was tied.
        verified: The result of reading the output back; None if not requested.
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
    copies: tuple[str, ...] = ()
    verified: Verified | None = None


def merge_result(
    plan: MergePlan, output: StagedOutput, resumed: int, proof: Verified | None
) -> Merged:
    """Summarizes an output whose shards are all complete."""
    shards = plan.checkpoint.shards
    losses = {
        name: Loss.of(fields)
        for record in output.read_records(len(shards))
        for name, fields in record["losses"].items()
    }
    changed = plan.changed
    packed = sum(is_packed(tensor) for tensor in plan.checkpoint.tensors.values())
    computed = dict.fromkeys((*changed, *plan.recipes))
    return Merged(
        out=output.path,
        shards=tuple(shard.name for shard in shards),
        changed=changed,
        copied=len(plan.checkpoint.tensors) - len(computed),
        size=plan.checkpoint.size,
        untied=plan.untied[0] if plan.untied else None,
        left_out=plan.left_out,
        dequantized=packed,
        resized=dict(plan.resized),
        new_head=plan.new_head,
        resumed=resumed,
        rounding=summarize({name: losses[name] for name in changed if name in losses}),
        copies=plan.untied,
        verified=proof,
    )
