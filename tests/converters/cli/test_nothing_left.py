"""Failed commands leave nothing behind; an impossible output is one error."""

import os
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jaxmix
from jaxmix.converters.adapters.mixfile import writing as mixes
from jaxmix.converters.adapters.peft import export as exports
from jaxmix.converters.merging import staged_output
from jaxmix.errors import CheckpointError
from jaxmix.families import LoRA

from ...messages import full_text
from ..bases import Adapters, contents
from .running import Captured, main, run_json

# Maps a base and an adapter to the arguments of a command that writes.
WORDS: dict[str, Callable[[Path, Path], tuple[object, ...]]] = {
    "merge": lambda base, a: ("merge", base, "-a", a),
    "mix": lambda base, a: ("convert", a, "--to", "mix"),
    "peft": lambda base, a: ("convert", a, "--to", "peft"),
    "kohya": lambda base, a: ("convert", a, "--to", "kohya"),
    "diffusers": lambda base, a: ("convert", a, "--to", "diffusers"),
    "export": lambda base, a: ("export", "-a", a),
    "rank": lambda base, a: ("export", "-a", a, "--base", base, "--rank", 1),
    "combine": lambda base, a: ("combine", "-a", a, "-a", a, "-m", "cat"),
}
FILES = ("kohya", "diffusers")
NEW = "new/deep/out"


def _out(command: str, folder: Path) -> Path:
    return folder / (f"{NEW}.safetensors" if command in FILES else NEW)


def _tree(folder: Path) -> tuple[list[str], dict[str, bytes]]:
    """Returns all paths, empty folders included, and the files' contents."""
    return sorted(map(str, folder.rglob("*"))), contents(folder)


def _nan(folder: Path) -> Path:
    """Saves an adapter that contains NaN."""
    factors = np.full((1, 6), np.nan, np.float32), np.ones((8, 1), np.float32)
    site = "model.layers.0.q_proj"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(mixes, "count_infinite", lambda array: 0)
        return jaxmix.save(jaxmix.Adapter({site: LoRA(*factors, 1.0)}), folder / "nan")


def _misfit(folder: Path) -> Path:
    """Saves an adapter that fits no weight of the base."""
    factors = np.ones((2, 3), np.float32), np.ones((5, 2), np.float32)
    return jaxmix.save(
        jaxmix.Adapter({"model.layers.0.q_proj": LoRA(*factors, 1.0)}), folder / "misfit"
    )


BAD: dict[str, Callable[[Path], Path]] = {
    "absent": lambda folder: folder / "absent",
    "misfit": _misfit,
    "NaN": _nan,
}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("command", WORDS)
def test_refused_command_leaves_nothing(
    command: str, bad: str, base: Path, tmp_path: Path, capsys: Captured
) -> None:
    """The error is one JSON document; neither the output nor its parent folders are created."""
    adapter = BAD[bad](tmp_path)
    if bad == "misfit" and command not in ("merge", "rank"):
        pytest.skip("no weight is asked")
    before = _tree(tmp_path)
    document = run_json(
        capsys, *WORDS[command](base, adapter), "-o", _out(command, tmp_path), code=1
    )
    assert len(document["error"]) > 30 and _tree(tmp_path) == before


def _full(*args: Any, **options: Any) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("command", WORDS)
def test_full_disk_leaves_nothing(
    command: str,
    base: Path,
    adapters: Adapters,
    tmp_path: Path,
    capsys: Captured,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A disk that is full after the first folders are made leaves nothing behind."""
    if command in FILES:
        (tmp_path / NEW).parent.mkdir(parents=True)  # these two make none
    before = _tree(tmp_path)
    monkeypatch.setattr(mixes, "write", _full)
    monkeypatch.setattr(exports, "save_file", _full)
    monkeypatch.setattr(
        sys.modules["jaxmix.converters.adapters.lycoris.writing"], "save_file", _full
    )
    monkeypatch.setattr(staged_output, "fsync", _full)
    out = _out(command, tmp_path)
    document = run_json(capsys, *WORDS[command](base, adapters["lora"]), "-o", out, code=1)
    assert "No space left on device" in document["error"]
    assert _tree(tmp_path) == before


def test_partly_made_folders_are_removed(
    adapters: Adapters, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the second of three folders fails, the first is removed."""
    before, plain = _tree(tmp_path), os.mkdir

    def mkdir(path: Any, *args: Any) -> None:
        if Path(path).name == "deep" and Path(path).parent.exists():
            _full()
        plain(path, *args)

    lora = jaxmix.load(adapters["lora"])
    monkeypatch.setattr(os, "mkdir", mkdir)
    with pytest.raises(
        CheckpointError,
        match=full_text(
            f"the output {tmp_path}/new/deep/out could not be written: [Errno "
            "28] No space left on device. What was written is deleted, "
            "and nothing else has changed. Free some space, or choose "
            "another disk."
        ),
    ):
        jaxmix.save(lora, tmp_path / NEW)
    assert _tree(tmp_path) == before


# ------------------------------------------------------------------ impossible outputs

# With the exit code: a path that typer rejects is a usage error.
OUTS = {
    "/": (1, "the output / is the root of the file system, expected a folder or file in it."),
    "~nobody-of-this-name/x": (1, "can't be looked up: Could not determine home directory"),
    "round/x": (1, "can't be looked up: Too many levels of symbolic links. Check its spelling."),
    "a\0b": (1, "embedded null byte. Check the paths."),
    "\ud800x": (1, "surrogates not allowed. Check the paths."),
}
if find_spec("typer._click"):  # a newer typer says which option
    OUTS |= {
        "a\0b": (2, "Invalid value for '--out' / '-o': Value error, embedded null byte"),
        "\ud800x": (2, "Invalid value for '--out' / '-o': Value error, 'utf-8' codec can't encode"),
    }


@pytest.mark.parametrize("out", OUTS, ids=ascii)
@pytest.mark.parametrize("command", [name for name in WORDS if name not in FILES])
def test_impossible_output_is_one_error(
    command: str, out: str, base: Path, adapters: Adapters, tmp_path: Path, capsys: Captured,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "round").symlink_to("round")
    before = _tree(tmp_path)
    args = (*WORDS[command](base, adapters["lora"]), "-o", out)
    code, text = OUTS[out]
    for more in ((), ("--force",)):
        assert text in run_json(capsys, *args, *more, code=code)["error"]
    assert _tree(tmp_path) == before


CALLS: dict[str, Callable[..., Any]] = {
    "merge": lambda base, lora, out: jaxmix.merge_checkpoint(base, lora, out, force=True),
    "save": lambda base, lora, out: jaxmix.save(lora, out, force=True),
    "export": lambda base, lora, out: jaxmix.export_peft(lora, out, force=True),
}


@pytest.mark.parametrize("call", CALLS)
def test_working_directory_is_not_replaced(
    call: str, base: Path, adapters: Adapters, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The working directory is not replaced under any of its names; an empty string is refused."""
    lora = jaxmix.load(adapters["lora"])
    CALLS[call](base, lora, tmp_path / "here")
    (tmp_path / "empty").mkdir()
    for where in ("here", "empty"):
        monkeypatch.chdir(tmp_path / where)
        before = _tree(tmp_path)
        for out in (".", tmp_path / where, f"../{where}"):
            message = (
                f"the output {out} contains the working directory, which would be deleted with the "
                "folder that is replaced. Change to another directory, or choose another folder."
            )
            with pytest.raises(CheckpointError, match=full_text(message)):
                CALLS[call](base, lora, out)
        message = "the output is an empty string, expected a path. Pass one."
        with pytest.raises(CheckpointError, match=full_text(message)):
            CALLS[call](base, lora, "")
        assert _tree(tmp_path) == before


def test_deleted_working_directory_is_reported(
    adapters: Adapters, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lora = jaxmix.load(adapters["lora"])
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    message = (
        "the output x can't be looked up: the working directory no longer exists. Change to a "
        "folder that exists, or pass an absolute path."
    )
    with pytest.raises(CheckpointError, match=full_text(message)):
        jaxmix.save(lora, "x")
    assert jaxmix.save(lora, tmp_path / "x").is_dir()


def test_demo_copy_needs_a_name(tmp_path: Path, capsys: Captured) -> None:
    assert (
        "/ is the root of the file system"
        in run_json(capsys, "demo", "--copy", "/", code=1)["error"]
    )
    assert main("demo", "--copy", tmp_path / NEW, "--json") == 0
