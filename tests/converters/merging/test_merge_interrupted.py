"""Merges that fail: the old output stays, and only complete shards are left."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

import jaxmix
from jaxmix.converters.merging import merge, merge_checkpoint, recipe, staged_output
from jaxmix.errors import CheckpointError, LayoutError

from ...messages import full_text
from ..bases import Adapters, contents, header, mixed


@pytest.fixture
def before_and_out(base: Path, adapters: Adapters, tmp_path: Path) -> tuple[Path, dict[str, bytes]]:
    """Returns an existing output, and all files before the next merge."""
    merge_checkpoint(base, [], tmp_path / "out")
    return tmp_path / "out", contents(tmp_path)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, MemoryError, LayoutError])
def test_failure_while_computing(
    error: type[BaseException],
    base: Path,
    adapters: Adapters,
    before_and_out: tuple[Path, dict[str, bytes]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The third tensor fails: the old output stays, and nothing else is left."""
    out, before = before_and_out
    plain: Any = recipe.Prepared.compute
    calls: list[Any] = []

    def failing(*args: Any) -> Any:
        calls.append(args)
        if len(calls) > 2:
            assert any(tmp_path.glob("*.partial/parts/0.safetensors"))
            raise error("on the way")
        return plain(*args)

    monkeypatch.setattr(recipe.Prepared, "compute", failing)
    for target in (out, tmp_path / "new"):
        calls.clear()
        with pytest.raises(error, match=full_text("on the way")):
            merge_checkpoint(base, mixed(adapters), target, force=True)
        assert contents(tmp_path) == before and not list(tmp_path.glob("*.partial*"))


@pytest.mark.parametrize(
    ("number", "hint"),
    [
        (errno.ENOSPC, "Free some space, or choose another disk."),
        (errno.EDQUOT, "Free some space, or choose another disk."),
        (errno.EROFS, "Choose a folder to which you can write."),
        (errno.EIO, "nothing else has changed."),
    ],
)
def test_write_errors(
    number: int,
    hint: str,
    base: Path,
    adapters: Adapters,
    before_and_out: tuple[Path, dict[str, bytes]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The error states the system's reason, and nothing else is left."""
    out, before = before_and_out

    def failing(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(merge.shutil, "copyfile", failing)
    with pytest.raises(CheckpointError) as caught:
        merge_checkpoint(base, mixed(adapters), out, force=True)
    text = str(caught.value)
    assert f"out could not be written: [Errno {number}] {os.strerror(number)}. What was" in text
    assert text.endswith(hint) and contents(tmp_path) == before
    assert [path.name for path in tmp_path.glob("out*")] == ["out"]


def test_file_size_limit(base: Path, adapters: Adapters, tmp_path: Path) -> None:
    """A real limit of the system has the same effect."""
    resource = pytest.importorskip("resource")
    before, limits = contents(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    largest = (base / "model.safetensors").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest - 100, limits[1]))
    try:
        message = full_text(
            f"the output {tmp_path}/out could not be written: [Errno 27] File too large. What was "
            "written is deleted, and nothing else has changed. Choose a disk that supports files "
            "of this size."
        )
        with pytest.raises(CheckpointError, match=message):
            merge_checkpoint(base, jaxmix.load(adapters["lora"]), tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert contents(tmp_path) == before and not list(tmp_path.glob("out*"))


@pytest.mark.skipif(os.name != "posix" or os.getuid() == 0, reason="root may write anywhere")
def test_read_only_folder(base: Path, adapters: Adapters, tmp_path: Path) -> None:
    """The error states the system's reason."""
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(CheckpointError, match=r"Permission denied.*to which you can write\.\Z"):
            merge_checkpoint(base, jaxmix.load(adapters["lora"]), tmp_path / "out")
    finally:
        tmp_path.chmod(0o700)


def test_last_step_fails(
    base: Path,
    adapters: Adapters,
    before_and_out: tuple[Path, dict[str, bytes]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The old output stays, and the complete shards wait; `resume` only repeats this step."""
    out, before = before_and_out

    def failing(*_: Any) -> None:
        raise PermissionError(errno.EACCES, "no")

    with monkeypatch.context() as patched:
        patched.setattr(staged_output, "exchange_paths", failing)
        message = full_text(
            f"the output {out} could not be written: [Errno 13] no. 1 of 1 shards are complete in "
            f"{out}.partial. Use resume=True to continue from there. Choose a folder to which you "
            "can write."
        )
        with pytest.raises(CheckpointError, match=message):
            merge_checkpoint(base, mixed(adapters), out, force=True)
    assert contents(out) == {n[4:]: d for n, d in before.items() if n.startswith("out/")}
    merged = merge_checkpoint(base, mixed(adapters), out, force=True, resume=True)
    assert merged.resumed == 1 and not list(tmp_path.glob("out.*"))
    merge_checkpoint(base, mixed(adapters), tmp_path / "other")
    assert contents(out) == contents(tmp_path / "other")


@pytest.mark.parametrize("failing_rename", [1, 2])
def test_exchange_by_two_renames(
    failing_rename: int,
    base: Path,
    adapters: Adapters,
    before_and_out: tuple[Path, dict[str, bytes]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If either rename fails, the old output is restored."""
    out, before = before_and_out
    plain, calls = Path.rename, []

    def failing(self: Path, target: Path) -> Path:
        if Path(target).name in ("old", "out") and "partial" in str(self) + str(target):
            calls.append(target)
            if len(calls) == failing_rename:
                raise PermissionError(errno.EACCES, "no")
        return plain(self, target)

    monkeypatch.setattr(staged_output, "exchange_paths", lambda *_: False)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", failing)
        with pytest.raises(
            CheckpointError,
            match=full_text(
                f"the output {tmp_path}/out could not be written: [Errno 13] no. 1 "
                f"of 1 shards are complete in {tmp_path}/out.partial. Use "
                "resume=True to continue from there. Choose a folder to "
                "which you can write."
            ),
        ):
            merge_checkpoint(base, mixed(adapters), out, force=True)
    assert contents(out) == {n[4:]: d for n, d in before.items() if n.startswith("out/")}
    merge_checkpoint(base, mixed(adapters), out, force=True, resume=True)
    merge_checkpoint(base, mixed(adapters), tmp_path / "other")
    assert contents(out) == contents(tmp_path / "other") and not list(tmp_path.glob("out.*"))


def test_output_that_appears_during_the_merge(
    base: Path, adapters: Adapters, tmp_path: Path
) -> None:
    """It is not replaced."""
    out = tmp_path / "out"

    def meddle(*_: Any) -> None:
        out.mkdir(exist_ok=True)
        (out / "config.json").write_text("{}")

    with pytest.raises(
        CheckpointError,
        match=full_text(
            f"the output {tmp_path}/out exists. Choose another folder, or use "
            "force=True to replace it once the new one is complete."
        ),
    ):
        merge_checkpoint(base, jaxmix.load(adapters["lora"]), out, progress=meddle)
    assert contents(out) == {"config.json": b"{}"}
    merge_checkpoint(base, jaxmix.load(adapters["lora"]), out, resume=True, force=True)
    assert contents(out).keys() == contents(base).keys()
    assert len(list(tmp_path.glob("out*"))) == 1


@pytest.mark.parametrize("which", ["lora", "embedding"])
def test_base_truncated_during_the_merge(
    which: str, sharded: Path, adapters: Adapters, tmp_path: Path
) -> None:
    """It is detected when a tensor is copied, and when one is read."""
    last = sharded / "model-00003-of-00003.safetensors"

    def cut(*_: Any) -> None:
        os.truncate(last, len(header(last)) + 8)

    before, after = last.stat().st_size, len(header(last)) + 8
    message = full_text(
        f"the base changed while it was being read:\n  {last}: it has {after:,} bytes, before "
        f"{before:,}\nThe output computed from it is not used. Merge again when no other program "
        "writes to the base."
    )
    with pytest.raises(CheckpointError, match=message):
        adapter = jaxmix.load(adapters[which])
        merge_checkpoint(sharded, adapter, tmp_path / "out", progress=cut)
    assert not list(tmp_path.glob("out*"))
