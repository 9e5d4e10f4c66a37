"""Folders that no merge owns are left unchanged, and no output is written to them."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

import jaxmix
from jaxmix.converters.merging import merge_checkpoint
from jaxmix.errors import CheckpointError

from ...messages import full_text
from ..bases import Adapters, contents


def _file(path: Path) -> None:
    path.write_text("a user's")


def _lock(path: Path) -> None:
    path.mkdir()
    (path / "lock").write_text("")
    (path / "thesis.tex").write_text("years of work")


def _lone_lock(path: Path) -> None:
    path.mkdir()
    (path / "lock").write_text("")


def _journal(text: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.mkdir()
        (path / "journal.json").write_text(text)
        (path / "new").mkdir()
        (path / "new" / "thesis.tex").write_text("years of work")

    return make


def _linked(path: Path) -> None:
    target = path.with_name("elsewhere")
    target.mkdir()
    _journal(json.dumps({"format": "jaxmix merge", "version": 2, "output": "out"}))(target / "x")
    path.symlink_to(target / "x")


def _linked_journal(path: Path) -> None:
    path.mkdir()
    record = {"format": "jaxmix merge", "version": 2, "output": "out"}
    path.with_name("journal").write_text(json.dumps(record))
    (path / "journal.json").symlink_to("../journal")


def _pipe(path: Path) -> None:
    path.mkdir()
    os.mkfifo(path / "journal.json")


OTHERS = {
    "a file": _file,
    "a folder with a lock": _lock,
    "a lock alone": _lone_lock,
    "a link": _linked,
    "a linked journal": _linked_journal,
    "a pipe": _pipe,
    "an empty journal beside a file": _journal(""),
    "no JSON": _journal("{"),
    "too deep": _journal("[" * 50_000),
    "another journal": _journal('{"format": "mine"}'),
    "another output's": _journal('{"format": "jaxmix merge", "version": 2, "output": "other"}'),
    "no journal's type": _journal("[1]"),
}


def _tree(folder: Path) -> dict[str, object]:
    """Everything below a folder: links with their targets, pipes with their names."""
    return {
        path.relative_to(folder).as_posix(): os.readlink(path)
        if path.is_symlink()
        else path.read_bytes()
        if path.is_file()
        else None
        for path in folder.rglob("*")
    }


@pytest.mark.parametrize("make", OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("option", ["plain", "force", "resume"])
def test_foreign_folder_is_refused(
    make: Callable[[Path], None], option: str, base: Path, adapters: Adapters, tmp_path: Path
) -> None:
    """It is left unchanged with any option."""
    make(tmp_path / "out.partial")
    before = _tree(tmp_path)
    with pytest.raises(
        CheckpointError,
        match=full_text(
            f"{tmp_path}/out.partial is in the way: the unfinished output would be written "
            "there, and it is not an unfinished merge to out. It is left unchanged. Move it, or "
            "choose another name for the output."
        ),
    ):
        options = {} if option == "plain" else {option: True}
        merge_checkpoint(base, jaxmix.load(adapters["lora"]), tmp_path / "out", **options)
    assert _tree(tmp_path) == before


@pytest.mark.parametrize("inner", ["", "new"])
def test_base_at_the_partial_path(
    inner: str, base: Path, adapters: Adapters, tmp_path: Path
) -> None:
    """A base named `m.partial` and the output `m`: the base is neither deleted nor emptied."""
    (tmp_path / "m.partial").mkdir()
    place = tmp_path / "m.partial" / inner
    base.rename(place)
    (tmp_path / "m.partial" / "lock").write_text("")
    before = _tree(tmp_path)
    with pytest.raises(
        CheckpointError,
        match=full_text(
            f"the folder for the unfinished output {tmp_path}/m.partial "
            f"{'contains' if inner else 'is'} the input {place}. Choose another name for the "
            "output."
        ),
    ):
        merge_checkpoint(place, jaxmix.load(adapters["lora"]), tmp_path / "m", force=True)
    assert _tree(tmp_path) == before


def test_links_in_an_interrupted_merge(base: Path, adapters: Adapters, tmp_path: Path) -> None:
    """Their targets are neither emptied nor truncated."""
    target = tmp_path / "mine"
    target.mkdir()
    (target / "0.safetensors").write_text("a user's")
    partial = tmp_path / "out.partial"
    partial.mkdir()
    record = {"format": "jaxmix merge", "version": 2, "output": "out"}
    (partial / "journal.json").write_text(json.dumps(record))
    for name in ("parts", "new", "whole"):
        (partial / name).symlink_to(target)
    (partial / "process").symlink_to(target / "0.safetensors")
    merge_checkpoint(base, jaxmix.load(adapters["lora"]), tmp_path / "out", resume=True)
    assert contents(target) == {"0.safetensors": b"a user's"}
    assert not partial.exists()


def test_refusal_leaves_no_folder(adapters: Adapters, base: Path, tmp_path: Path) -> None:
    """New parent folders of the output are removed too."""
    from jaxmix.converters.files import output

    lora = jaxmix.load(adapters["lora"])

    class Usage:
        free = 10**6

    with pytest.MonkeyPatch.context() as patched:
        # The first check finds enough space, the one after the folders are made does not.
        sizes = iter([Usage(), *[type("Full", (), {"free": 0})()] * 9])
        patched.setattr(output.shutil, "disk_usage", lambda _: next(sizes))
        with pytest.raises(
            CheckpointError,
            match=(
                rf"\Athe output {re.escape(str(tmp_path))}/new/deep/out needs [0-9,]+ bytes, and "
                rf"{re.escape(str(tmp_path))}/new/deep has 0 bytes free\. Free some space, or "
                r"choose another disk\.\Z"
            ),
        ):
            merge_checkpoint(base, lora, tmp_path / "new" / "deep" / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapters", "base"]
