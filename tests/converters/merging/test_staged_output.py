"""The folder in which an output is written, without a merge."""

import json
from pathlib import Path
from typing import Any

import pytest

from jaxmix.converters.checkpoints.huggingface import Shard
from jaxmix.converters.merging.staged_output import JOURNAL, PROCESS, StagedOutput
from jaxmix.errors import CheckpointError

from ...messages import full_text
from ..bases import contents

SHARDS = (Shard("a.safetensors", b"first", ()), Shard("part/b.safetensors", b"2nd", ()))
RECORD = {"losses": {"q.weight": {"count": 2, "squares": [1, 2, 3], "most": [1, 1, 1]}}}
MERGE = {"the adapters": ["style"], "the layout": "torch"}


def begun(folder: Path, *, finished: int = 2) -> StagedOutput:
    """An output with this number of complete shards."""
    output = StagedOutput(folder / "out")
    output.folder.mkdir()
    for name in (JOURNAL, PROCESS):
        (output.folder / name).touch()
    output.begin(MERGE, SHARDS, resume=False, force=False)
    for number, shard in enumerate(SHARDS[:finished]):
        output.part_path(number).write_bytes(shard.header)
        output.finish_shard(number, shard, RECORD)
    return output


def test_finished_shard_is_complete(tmp_path: Path) -> None:
    """Its record has the size and the losses; a shard of a component has a folder of its own."""
    output = begun(tmp_path)
    records = output.complete_shards(SHARDS)
    assert [record["size"] for record in records.values()] == [5, 3]
    assert [record["losses"] for record in output.read_records(2)] == [RECORD["losses"]] * 2
    assert contents(output.new) == {"a.safetensors": b"first", "part/b.safetensors": b"2nd"}
    assert not list((output.folder / "parts").iterdir())


def _shorten(output: StagedOutput) -> None:
    output.shard_path(SHARDS[0]).write_bytes(b"firs")


def _link(output: StagedOutput) -> None:
    file = output.shard_path(SHARDS[0])
    file.rename(output.folder / "elsewhere")
    file.symlink_to(output.folder / "elsewhere")


def _edit_record(output: StagedOutput) -> None:
    output.record_path(0).write_text(json.dumps({"size": 5, "losses": [1]}))


@pytest.mark.parametrize("damage", [_shorten, _link, _edit_record])
def test_changed_shard_is_not_complete(damage: Any, tmp_path: Path) -> None:
    """Another size, a link, and a record that no merge wrote; the other shard is complete."""
    output = begun(tmp_path)
    damage(output)
    assert list(output.complete_shards(SHARDS)) == [1]


def test_edited_record_is_named(tmp_path: Path) -> None:
    """Of several, the first."""
    output = begun(tmp_path)
    for number in (1, 0):
        output.record_path(number).write_text("{}")
        message = full_text(
            f"{tmp_path}/out.partial/whole/{number}.json is not what a merge wrote. Use force=True "
            "without resume=True to start over."
        )
        with pytest.raises(CheckpointError, match=message):
            output.read_records(2)


def test_resuming_keeps_only_shards_with_their_bytes(tmp_path: Path) -> None:
    """A changed byte is found by the checksum; that shard and its record are deleted."""
    output = begun(tmp_path)
    output.shard_path(SHARDS[0]).write_bytes(b"fisrt")
    output.part_path(7).write_bytes(b"unfinished")
    assert list(output.begin(MERGE, SHARDS, resume=True, force=False)) == [1]
    assert contents(output.new) == {"part/b.safetensors": b"2nd"}
    assert [path.name for path in (output.folder / "whole").iterdir()] == ["1.json"]
    assert not list((output.folder / "parts").iterdir())


@pytest.mark.parametrize(
    ("finished", "journal", "resume", "message"),
    [
        (
            1,
            MERGE,
            False,
            "holds 1 of 2 shards of this merge, which was interrupted. Use resume=True to "
            "continue, force=True to start over, or delete the folder.",
        ),
        (
            1,
            {**MERGE, "the layout": "flax"},
            False,
            "holds another merge, which was interrupted. Use force=True to start over, or delete "
            "the folder.",
        ),
        (
            0,
            {"the adapters": ["other"]},
            True,
            "belongs to another merge, which can't be resumed. Different: the adapters, the "
            "layout. Merge with the same arguments as before, or use force=True without "
            "resume=True to start over.",
        ),
    ],
)
def test_earlier_work_is_neither_lost_nor_mixed_up(
    finished: int, journal: dict[str, Any], resume: bool, message: str, tmp_path: Path
) -> None:
    """Everything stays as it was; without complete shards another merge simply starts."""
    output = begun(tmp_path, finished=finished)
    before = contents(output.folder)
    with pytest.raises(CheckpointError, match=full_text(f"{tmp_path}/out.partial {message}")):
        output.begin(journal, SHARDS, resume=resume, force=False)
    assert contents(output.folder) == before
    assert output.begin(journal, SHARDS, resume=False, force=True) == {}
    assert output.journal == journal and contents(output.new) == {}


@pytest.mark.parametrize("is_sealed", [False, True])
@pytest.mark.parametrize("is_missing", [False, True])
def test_move_that_was_killed_is_completed(
    is_sealed: bool, is_missing: bool, tmp_path: Path
) -> None:
    """Between two renames the output is missing: it is the new one if that was complete."""
    output = begun(tmp_path)
    (output.folder / "old").mkdir()
    (output.folder / "old" / "old.txt").touch()
    if is_sealed:
        (output.folder / "sealed.json").write_text(str(output.new.stat().st_ino))
    if not is_missing:
        output.path.mkdir()
    output.recover()
    kept = set(contents(output.path))
    if not is_missing:
        assert kept == set()
    elif is_sealed:
        assert kept == {"a.safetensors", "part/b.safetensors"}
    else:
        assert kept == {"old.txt"}
    assert output.is_published is (is_sealed and is_missing)


def test_publishing_replaces_only_with_force(tmp_path: Path) -> None:
    """An empty folder is no output; the check runs before anything is moved."""
    output = begun(tmp_path)
    output.path.mkdir()
    (output.path / "old.txt").touch()

    def refuse() -> None:
        raise CheckpointError("changed")

    with pytest.raises(CheckpointError, match=full_text("changed")):
        output.publish(force=True, check=refuse)
    message = full_text(f"{tmp_path}/out was created while the merge ran")
    with pytest.raises(FileExistsError, match=message):
        output.publish(force=False, check=lambda: None)
    assert set(contents(output.path)) == {"old.txt"}
    (output.path / "old.txt").unlink()
    output.publish(force=False, check=lambda: None)
    assert set(contents(output.path)) == {"a.safetensors", "part/b.safetensors"}
    assert list(tmp_path.iterdir()) == [output.path]


def test_clearing_keeps_the_lock_and_follows_no_link(tmp_path: Path) -> None:
    """A link to a folder is deleted, the folder's contents stay."""
    output = begun(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    (output.folder / "link").symlink_to(tmp_path / "other")
    output.clear()
    assert {path.name for path in output.folder.iterdir()} == {JOURNAL, PROCESS}
    assert (tmp_path / "other" / "file").exists()
