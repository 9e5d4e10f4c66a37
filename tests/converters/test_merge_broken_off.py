"""Merges that fail on the way: the old output stands, nothing is left."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import jaxmix
from jaxmix.converters import groups, stream
from jaxmix.converters.merging import merge_checkpoint
from jaxmix.errors import CheckpointError, LayoutError

from .checkpoints import Adapters, contents, header, mixed


@pytest.fixture
def before_and_out(base: Path, adapters: Adapters, tmp_path: Path) -> tuple[Path, dict[str, bytes]]:
    """An output that stands there, and all files before the next merge."""
    merge_checkpoint(base, [], tmp_path / "out")
    return tmp_path / "out", contents(tmp_path)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, MemoryError, LayoutError])
def test_a_failure_in_the_middle(
    error: type[BaseException],
    base: Path,
    adapters: Adapters,
    before_and_out: tuple[Path, dict[str, bytes]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The third site's computing fails: the old output stands, and nothing lies about."""
    out, before = before_and_out
    plain, calls = groups.compose, []

    def failing(*args: Any, **options: Any) -> Any:
        calls.append(args)
        if len(calls) > 3:
            assert any(tmp_path.glob("*.partial-*/model.safetensors"))
            raise error("on the way")
        return plain(*args, **options)

    monkeypatch.setattr(groups, "compose", failing)
    for target in (out, tmp_path / "new"):
        calls.clear()
        with pytest.raises(error, match="on the way"):
            merge_checkpoint(base, mixed(adapters), target, force=True)
        assert contents(tmp_path) == before and not list(tmp_path.glob("*.partial*"))


@pytest.mark.parametrize(
    ("number", "hint"),
    [
        (errno.ENOSPC, "Make room, or choose another disk."),
        (errno.EDQUOT, "Make room, or choose another disk."),
        (errno.EROFS, "Choose a folder in which you may write."),
        (errno.EIO, "all else is as it was."),
    ],
)
def test_the_system_refuses_to_write(
    number: int,
    hint: str,
    base: Path,
    adapters: Adapters,
    before_and_out: tuple[Path, dict[str, bytes]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever it says is told, and nothing lies about."""
    out, before = before_and_out

    def failing(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(stream.shutil, "copyfile", failing)
    with pytest.raises(CheckpointError) as caught:
        merge_checkpoint(base, mixed(adapters), out, force=True)
    text = str(caught.value)
    assert f"out could not be written: [Errno {number}] {os.strerror(number)}. What was" in text
    assert text.endswith(hint) and contents(tmp_path) == before
    assert [path.name for path in tmp_path.glob("out*")] == ["out"]


def test_files_may_not_grow(base: Path, adapters: Adapters, tmp_path: Path) -> None:
    """The same from a real limit of the system."""
    resource = pytest.importorskip("resource")
    before, limits = contents(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    largest = (base / "model.safetensors").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest - 100, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=r"File too large.*takes files of this size\.$"):
            merge_checkpoint(base, jaxmix.load(adapters["lora"]), tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert contents(tmp_path) == before and not list(tmp_path.glob("out*"))


@pytest.mark.skipif(os.name != "posix" or os.getuid() == 0, reason="root may write anywhere")
def test_a_folder_for_reading_only(base: Path, adapters: Adapters, tmp_path: Path) -> None:
    """Refused in the system's words."""
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(CheckpointError, match=r"Permission denied.*in which you may write"):
            merge_checkpoint(base, jaxmix.load(adapters["lora"]), tmp_path / "out")
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize("failing_rename", [1, 2])
def test_the_last_step_fails(
    failing_rename: int,
    base: Path,
    adapters: Adapters,
    before_and_out: tuple[Path, dict[str, bytes]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Either renaming: the old output is back in its place."""
    out, before = before_and_out
    plain, calls = Path.rename, []

    def failing(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) == failing_rename:
            raise PermissionError(errno.EACCES, "no")
        return plain(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(
        CheckpointError, match=r"could not be written.*Choose a folder in which you"
    ):
        merge_checkpoint(base, mixed(adapters), out, force=True)
    assert contents(tmp_path) == before


def test_an_output_that_appears_meanwhile(base: Path, adapters: Adapters, tmp_path: Path) -> None:
    """It is not replaced."""
    out = tmp_path / "out"

    def meddle(*_: Any) -> None:
        out.mkdir(exist_ok=True)
        (out / "config.json").write_text("{}")

    with pytest.raises(CheckpointError, match=r"could not be written: .*not empty"):
        merge_checkpoint(base, jaxmix.load(adapters["lora"]), out, progress=meddle)
    assert contents(out) == {"config.json": b"{}"} and len(list(tmp_path.glob("out*"))) == 1


@pytest.mark.parametrize("which", ["lora", "embedding"])
def test_a_base_that_is_cut_meanwhile(
    which: str, sharded: Path, adapters: Adapters, tmp_path: Path
) -> None:
    """Seen where a tensor is copied, and where one is read to be changed."""
    last = sharded / "model-00003-of-00003.safetensors"

    def cut(*_: Any) -> None:
        os.truncate(last, len(header(last)) + 8)

    with pytest.raises(CheckpointError, match=r"safetensors ends within \S+ Was it changed"):
        adapter = jaxmix.load(adapters[which])
        merge_checkpoint(sharded, adapter, tmp_path / "out", progress=cut)
    assert not list(tmp_path.glob("out*"))


KILLED = """
import sys, time
from jaxmix.converters.merging import merge_checkpoint
import jaxmix

def wait(done, size, shard):
    if shard.startswith("model-00002"):
        print("now", flush=True)
        time.sleep(100)

base, lora, out = sys.argv[1:]
merge_checkpoint(base, jaxmix.load(lora), out, force=True, progress=wait)
"""


def test_killed(sharded: Path, adapters: Adapters, tmp_path: Path) -> None:
    """Between two shards, by the signal that can't be caught: no half output, and the old one."""
    lora, out = jaxmix.load(adapters["lora"]), tmp_path / "out"
    merge_checkpoint(sharded, [], out)
    before = contents(out)
    words = [sys.executable, "-c", KILLED, sharded, adapters["lora"], out]
    with subprocess.Popen(list(map(str, words)), stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout and child.stdout.readline() == "now\n"
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL and contents(out) == before
    assert sorted(path.name.partition("-")[0] for path in tmp_path.glob("out*")) == [
        "out",
        "out.partial",
    ]
    assert merge_checkpoint(sharded, lora, out, force=True).changed
    assert contents(out).keys() == before.keys() and contents(out) != before
