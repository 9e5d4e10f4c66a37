"""The summary of a merge."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jaxmix
from jaxmix.converters.merging.merge_plan import AllowedChanges, MergePlan, plan_merge
from jaxmix.converters.merging.result import merge_result
from jaxmix.converters.merging.staged_output import StagedOutput

from ..bases import Adapters

Q = "model.layers.{}.q_proj.weight"
LOSS = {"count": 4, "squares": [1.0, 4.0, 16.0], "most": [0.5, 2.0, 4.0]}


def staged(plan: MergePlan, *losses: dict[str, Any]) -> StagedOutput:
    """An output whose shards have these losses."""
    output = StagedOutput(plan.checkpoint.folder.with_name("out"))
    (output.folder / "parts").mkdir(parents=True)
    (output.folder / "whole").mkdir()
    for number, (shard, sums) in enumerate(zip(plan.checkpoint.shards, losses, strict=True)):
        output.part_path(number).touch()
        output.finish_shard(number, shard, {"losses": sums})
    return output


def test_result_joins_the_records_of_all_shards(sharded: Path, adapters: Adapters) -> None:
    """Losses of tensors that no adapter changes are left out, as of a head that was resized."""
    changes = AllowedChanges(untie=False, dequantize=False, resize=False, new_head=None)
    plan = plan_merge(sharded, jaxmix.load(adapters["lora"]), None, changes)
    output = staged(plan, {Q.format(0): LOSS}, {"lm_head.weight": LOSS}, {Q.format(1): LOSS})
    result = merge_result(plan, output, 2, None)
    assert result.rounding is not None
    assert set(result.rounding.tensors) == {Q.format(0), Q.format(1)}
    assert (result.rounding.largest, result.rounding.rms) == (0.5, 0.5)
    assert result.rounding.of_effect == 0.25
    assert (len(result.changed), result.copied) == (4, len(plan.checkpoint.tensors) - 4)
    assert (result.out, result.resumed, result.verified) == (output.path, 2, None)
    assert result.shards == tuple(shard.name for shard in plan.checkpoint.shards)


def test_untied_head_comes_first(base: Path) -> None:
    """A merge without rounded tensors has no figures, and one without a tie no head."""
    changes = AllowedChanges(untie=False, dequantize=False, resize=False, new_head=None)
    plan = plan_merge(base, [], None, changes)
    output = staged(plan, {})
    result = merge_result(plan, output, 0, None)
    assert (result.rounding, result.untied, result.copies) == (None, None, ())
    result = merge_result(replace(plan, untied=("head", "bias")), output, 0, None)
    assert (result.untied, result.copies) == ("head", ("head", "bias"))
