"""Resuming interrupted merges: only the same merge, and one process at a time."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import jaxmix
from jaxmix.converters.merging import merge_checkpoint, staged_output, verify_merge
from jaxmix.errors import CheckpointError

from ...messages import full_text
from ..bases import Adapters, contents, mixed, save_base
from .conftest import SECOND, Stop, breaking


def test_resume(
    broken: Path,
    sharded: Path,
    adapters: Adapters,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Complete shards stay, the rest is written; files and rounding are those of one run."""
    inodes = [path.stat().st_ino for path in sorted((broken / "new").glob("*.safetensors"))]
    counts: list[int] = []
    merged = merge_checkpoint(
        sharded,
        mixed(adapters),
        tmp_path / "out",
        resume=True,
        progress=lambda done, *_: counts.append(done),
    )
    unbroken = merge_checkpoint(sharded, mixed(adapters), tmp_path / "whole")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert merged.resumed == len(inodes) > 0 and unbroken.resumed == 0
    shards = sorted((tmp_path / "out").glob("*.safetensors"))
    assert [path.stat().st_ino for path in shards[: len(inodes)]] == inodes
    assert counts[0] > sum(path.stat().st_size for path in shards[: len(inodes)])
    assert counts[-1] == merged.size and not broken.exists()


def test_rounding_of_earlier_shards_is_recorded(adapters: Adapters, tmp_path: Path) -> None:
    """The result includes the figures of shards that an earlier run wrote."""
    base = save_base(tmp_path / "half", shards=3, dtype="float16")
    with breaking(tmp_path / "out.partial", Stop()), pytest.raises(Stop):
        merge_checkpoint(base, mixed(adapters), tmp_path / "out")
    merged = merge_checkpoint(base, mixed(adapters), tmp_path / "out", resume=True)
    unbroken = merge_checkpoint(base, mixed(adapters), tmp_path / "whole")
    assert merged.resumed > 0 and merged.rounding == unbroken.rounding is not None


def test_resume_must_be_requested(
    broken: Path, sharded: Path, adapters: Adapters, tmp_path: Path
) -> None:
    """Without an option, shards are neither discarded nor used."""
    before = contents(broken)
    count = len(list(broken.glob("whole/*.json")))
    message = full_text(
        f"{broken} holds {count} of 3 shards of this merge, which was interrupted. Use resume=True "
        "to continue, force=True to start over, or delete the folder."
    )
    with pytest.raises(CheckpointError, match=message):
        merge_checkpoint(sharded, mixed(adapters), tmp_path / "out")
    assert contents(broken).keys() == before.keys()
    merged = merge_checkpoint(sharded, mixed(adapters), tmp_path / "out", force=True)
    assert merged.resumed == 0 and not broken.exists()


def test_resume_without_shards(sharded: Path, adapters: Adapters, tmp_path: Path) -> None:
    """It starts from the beginning, so scripts may always resume.

    A merge without a complete shard leaves nothing.
    """
    merged = merge_checkpoint(sharded, mixed(adapters), tmp_path / "out", resume=True)
    assert merged.resumed == 0
    (tmp_path / "two.partial").mkdir()  # a merge that was killed at its start
    (tmp_path / "two.partial" / "journal.json").touch()
    merge_checkpoint(sharded, mixed(adapters), tmp_path / "two")
    assert contents(tmp_path / "out") == contents(tmp_path / "two")
    assert not list(tmp_path.glob("*.partial"))


def test_another_merge(broken: Path, sharded: Path, adapters: Adapters, tmp_path: Path) -> None:
    """The error names all differences, and nothing is lost."""
    mix = mixed(adapters)
    out, before = tmp_path / "out", contents(broken)
    parts = list(mix.parts)
    parts[0] = 0.5 * parts[0]
    changed = [*mix.parts[:2], jaxmix.load(adapters["lora"], name=mix.parts[2].name)]
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (parts, {}, "their strengths"),
        (list(mix.parts[::-1]), {}, "the adapters, their strengths"),
        (changed, {}, "the adapters, their strengths"),
        (mix, {"layout": "torch"}, "the layout"),
    ]
    for adapters_now, options, description in cases:
        with pytest.raises(
            CheckpointError,
            match=full_text(
                f"{broken} belongs to another merge, which can't be resumed. Different: "
                f"{description}. Merge with the same arguments as before, or use force=True "
                "without resume=True to start over."
            ),
        ):
            merge_checkpoint(sharded, adapters_now, out, resume=True, **options)
        with pytest.raises(
            CheckpointError,
            match=full_text(
                f"{tmp_path}/out.partial holds another merge, which was "
                "interrupted. Use force=True to start over, or delete the "
                "folder."
            ),
        ):
            merge_checkpoint(sharded, adapters_now, out, **options)
    os.utime(sharded / SECOND)
    with pytest.raises(
        CheckpointError,
        match=full_text(
            f"{tmp_path}/out.partial belongs to another merge, which can't be "
            "resumed. Different: the base's files. Merge with the same "
            "arguments as before, or use force=True without resume=True "
            "to start over."
        ),
    ):
        merge_checkpoint(sharded, mix, out, resume=True)
    assert contents(broken).keys() == before.keys()
    assert merge_checkpoint(sharded, mix, out, force=True).resumed == 0


@pytest.mark.parametrize("damage", ["cut", "gone", "bits", "record", "losses", "merge"])
def test_incomplete_shards_are_written_again(
    damage: str, broken: Path, sharded: Path, adapters: Adapters, tmp_path: Path
) -> None:
    """The shard has another size, other bits or no record, or is missing."""
    shard = min((broken / "new").glob("*.safetensors"))
    if damage == "cut":
        os.truncate(shard, 100)
    elif damage == "bits":
        data = bytearray(shard.read_bytes())
        data[-1] ^= 1
        shard.write_bytes(data)
    elif damage == "gone":
        shard.unlink()
    elif damage == "losses":
        record = json.loads((broken / "whole/0.json").read_text())
        (broken / "whole/0.json").write_text(json.dumps({**record, "losses": {"x": 1}}))
    else:
        name = "merge.json" if damage == "merge" else "whole/0.json"
        (broken / name).write_text("[")
    merge_checkpoint(sharded, mixed(adapters), tmp_path / "out", resume=True)
    merge_checkpoint(sharded, mixed(adapters), tmp_path / "whole")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_full_disk(sharded: Path, adapters: Adapters, tmp_path: Path) -> None:
    """The disk is full in the third shard: complete shards stay, and the error says what to do."""
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    out = re.escape(str(tmp_path / "out"))
    text = (
        rf"\Athe output {out} could not be written: \[Errno 28\] No space left on device\. [12] of "
        rf"3 shards are complete in {out}\.partial\. Use resume=True to continue from there\. Free "
        r"some space, or choose another disk\.\Z"
    )
    with breaking(tmp_path / "out.partial", full), pytest.raises(CheckpointError, match=text):
        merge_checkpoint(sharded, mixed(adapters), tmp_path / "out")
    assert merge_checkpoint(sharded, mixed(adapters), tmp_path / "out", resume=True).resumed


@pytest.mark.parametrize("is_there", [False, True])
def test_killed_during_cleanup(
    is_there: bool,
    sharded: Path,
    adapters: Adapters,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The output is in place; `resume` returns it, without force."""
    out = tmp_path / "out"
    if is_there:
        merge_checkpoint(sharded, [], out)
    with monkeypatch.context() as patched:
        patched.setattr(staged_output.StagedOutput, "delete", lambda _: None)
        result = merge_checkpoint(sharded, mixed(adapters), out, force=is_there)
    before = contents(out)
    assert (tmp_path / "out.partial").exists()
    shutil.copytree(tmp_path / "out.partial", tmp_path / "saved")
    resumed = merge_checkpoint(sharded, mixed(adapters), out, resume=True)
    assert resumed.resumed == 3 and (resumed.changed, resumed.rounding) == (
        result.changed,
        result.rounding,
    )
    assert contents(out) == before and not (tmp_path / "out.partial").exists()
    # Without `resume` the output counts as existing; the rest is removed once it may be replaced.
    (tmp_path / "saved").rename(tmp_path / "out.partial")
    with pytest.raises(
        CheckpointError,
        match=full_text(
            f"the output {tmp_path}/out exists. Choose another folder, or use "
            "force=True to replace it once the new one is complete."
        ),
    ):
        merge_checkpoint(sharded, [], out)
    merge_checkpoint(sharded, [], out, force=True)
    assert contents(out) != before and not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize("new_is_whole", [True, False])
def test_killed_between_two_renames(
    new_is_whole: bool,
    sharded: Path,
    adapters: Adapters,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without an exchange the output is absent for a moment; the next run completes the merge."""
    out = tmp_path / "out"
    merge_checkpoint(sharded, [], out)
    old = contents(out)

    def moved(self: staged_output.StagedOutput) -> None:
        self.path.rename(self.folder / "old")
        raise KeyboardInterrupt

    monkeypatch.setattr(staged_output, "exchange_paths", lambda *_: False)
    with monkeypatch.context() as patched:
        patched.setattr(staged_output.StagedOutput, "_swap", moved)
        with pytest.raises(KeyboardInterrupt):
            merge_checkpoint(sharded, mixed(adapters), out, force=True)
    assert not out.exists()
    if not new_is_whole:
        (tmp_path / "out.partial/sealed.json").unlink()
        message = full_text(
            f"the output {out} exists. Choose another folder, or use force=True to replace it once "
            "the new one is complete."
        )
        with pytest.raises(CheckpointError, match=message):
            merge_checkpoint(sharded, mixed(adapters), out)
        assert contents(out) == old
        return
    assert merge_checkpoint(sharded, mixed(adapters), out, resume=True).resumed == 3
    assert contents(out) != old and verify_merge(sharded, mixed(adapters), out).ok


def test_foreign_folder_of_that_name(sharded: Path, adapters: Adapters, tmp_path: Path) -> None:
    """A user's folder of that name is not taken for a merge's."""
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "thesis.txt").write_text("x")
    for options in ({}, {"force": True}, {"resume": True}):
        with pytest.raises(
            CheckpointError,
            match=full_text(
                f"{tmp_path}/out.partial is in the way: the unfinished output would be written "
                "there, and it is not an unfinished merge to out. It is left unchanged. Move it, "
                "or choose another name for the output."
            ),
        ):
            merge_checkpoint(sharded, mixed(adapters), tmp_path / "out", **options)
    assert contents(tmp_path / "out.partial") == {"thesis.txt": b"x"}


TWO = """
import sys
import jaxmix
base, lora, out = sys.argv[1:]
print("now", flush=True)
sys.stdin.readline()
jaxmix.merge_checkpoint(base, jaxmix.load(lora), out)
"""


@pytest.mark.skipif(os.name != "posix", reason="locks")
def test_second_simultaneous_merge_is_refused(
    sharded: Path, adapters: Adapters, tmp_path: Path
) -> None:
    """The second is refused with the first one's process id; the first is undisturbed."""
    lora, out, messages = jaxmix.load(adapters["lora"]), tmp_path / "out", list[str]()
    command = [sys.executable, "-c", TWO, sharded, adapters["lora"], out]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        list(map(str, command)), stdin=pipe, stdout=pipe, stderr=pipe, text=True
    ) as child:
        assert child.stdout and child.stdout.readline() == "now\n"

        def meanwhile(*_: Any) -> None:
            if not messages:
                messages.append(child.communicate("go\n")[1])

        merge_checkpoint(sharded, lora, out, progress=meanwhile)
    assert child.returncode == 1
    assert (
        f"another process (number {os.getpid()}) is writing the output {out}. Wait" in messages[0]
    )
    assert verify_merge(sharded, lora, out).ok and not list(tmp_path.glob("out.*"))


def test_lock_removed_while_opening(
    sharded: Path, adapters: Adapters, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process removes the folder and the journal at this moment; they are created again."""
    plain: Any = os.open
    gone: list[str] = []

    def meddling(path: Any, *args: Any, **options: Any) -> Any:
        if isinstance(path, Path) and path.name == "journal.json" and len(gone) < 2:
            file = None if gone else plain(path, *args, **options)
            gone.append(path.name)
            shutil.rmtree(path.parent)
            return file or plain(path, *args, **options)
        return plain(path, *args, **options)

    monkeypatch.setattr(os, "open", meddling)
    merge_checkpoint(sharded, mixed(adapters), tmp_path / "out")
    assert len(gone) == 2 and not list(tmp_path.glob("out.*"))


def test_journal_is_readable(broken: Path) -> None:
    """The journal explains the folder's purpose to users."""
    whose = json.loads((broken / "journal.json").read_text())
    assert whose == {"format": "jaxmix merge", "version": 2, "output": "out"}
    record = json.loads((broken / "merge.json").read_text())
    assert [name for name, _ in record["the adapters"]] == ["lora", "oft", "loha"]
    assert record["their strengths"] == ["1.0", "0.5", "-0.7"]
