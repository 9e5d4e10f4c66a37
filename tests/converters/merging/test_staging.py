"""Begins an output, and keeps or deletes it after an error."""

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from jaxmix.converters.checkpoints.huggingface import Shard
from jaxmix.converters.merging.merge_plan import AllowedChanges, MergePlan, plan_merge
from jaxmix.converters.merging.staged_output import StagedOutput
from jaxmix.converters.merging.staging import output_check, staged_output
from jaxmix.errors import CheckpointError

from ...messages import full_text
from ..bases import contents

STOP = KeyboardInterrupt("stop")
REFUSAL = CheckpointError("the base changed")
FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def plan(sharded: Path) -> MergePlan:
    """A merge of nothing into three shards."""
    changes = AllowedChanges(untie=False, dequantize=False, resize=False, new_head=None)
    return plan_merge(sharded, [], None, changes)


def finish(output: StagedOutput, number: int, shard: Shard) -> None:
    """Writes a shard of the right size."""
    output.part_path(number).write_bytes(bytes(shard.size))
    output.finish_shard(number, shard, {"losses": {}})


def fail(plan: MergePlan, out: Path, finished: int, error: BaseException) -> None:
    """Begins an output, and fails after this number of shards."""
    with staged_output(plan, plan.checkpoint.folder, out, resume=False, force=False) as staged:
        for number, shard in enumerate(plan.checkpoint.shards[:finished]):
            finish(staged[0], number, shard)
        raise error


@pytest.mark.parametrize("error", [STOP, FULL])
def test_error_without_complete_shards_leaves_nothing(
    error: BaseException, plan: MergePlan, tmp_path: Path
) -> None:
    """Not even the parent folders that were created for the output."""
    out = tmp_path / "new" / "folder" / "out"
    message = "stop"
    if error is FULL:
        message = (
            f"the output {out} could not be written: [Errno 28] No space left on device. What was "
            "written is deleted, and nothing else has changed. Free some space, or "
            "choose another disk."
        )
    kind = CheckpointError if error is FULL else KeyboardInterrupt
    with pytest.raises(kind, match=full_text(message)):
        fail(plan, out, 0, error)
    assert not (tmp_path / "new").exists()


def test_complete_shards_are_kept_with_a_note(plan: MergePlan, tmp_path: Path) -> None:
    """The note says how to continue, and resuming yields the records of these shards."""
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt) as caught:
        fail(plan, out, 2, KeyboardInterrupt())
    assert caught.value.__notes__ == [
        f"2 of 3 shards are complete in {out}.partial. Use resume=True to continue from there."
    ]
    base = plan.checkpoint.folder
    with staged_output(plan, base, out, resume=True, force=False) as (output, done):
        assert done is not None and list(done) == [0, 1]
        output.publish(force=False, check=lambda: None)
    assert set(contents(out)) == {shard.name for shard in plan.checkpoint.shards[:2]}


def test_refusal_deletes_complete_shards_too(plan: MergePlan, tmp_path: Path) -> None:
    """They were computed from a base that changed, or do not pass their verification."""
    with pytest.raises(CheckpointError, match=full_text("the base changed")):
        fail(plan, tmp_path / "out", 2, REFUSAL)
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    ("name", "is_replaceable"),
    [
        ("model-00001-of-00003.safetensors", True),
        ("config.json", True),
        ("templates/chat.jinja", True),  # the base has it too
        ("templates/other.jinja", False),
        ("notes.txt", False),
    ],
)
def test_only_files_of_checkpoints_are_replaced(
    name: str, is_replaceable: bool, plan: MergePlan, tmp_path: Path
) -> None:
    """`force` does not delete other files of the user."""
    out = tmp_path / "out"
    (out / name).parent.mkdir(parents=True)
    (out / "config.json").touch()
    (out / name).touch()
    check: Callable[..., Path] = output_check(
        plan, StagedOutput(out), plan.checkpoint.folder, out, force=True
    )
    if is_replaceable:
        assert check() == out
    else:
        with pytest.raises(CheckpointError) as caught:
            check()
        assert name in str(caught.value)
