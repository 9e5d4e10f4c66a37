"""The description of a merge, and the files of JSON next to it."""

import math
import os
from pathlib import Path

import numpy as np
import pytest

import jaxmix
from jaxmix.converters.merging.journal import (
    adapter_hash,
    differences,
    new_file,
    read_json,
    write_json,
)
from jaxmix.families import LoRA


def test_digest_of_adapters_without_a_format() -> None:
    """They are identified by their arrays and structure."""
    b = np.ones((2, 1), np.float32)

    def digest_of(number: float, b: np.ndarray = b) -> str:
        a = np.full((1, 3), number, np.float32)
        return adapter_hash(jaxmix.Adapter({"proj": LoRA(a, b, 1.0)}))

    assert digest_of(math.inf) == digest_of(math.inf) != digest_of(math.inf, 2 * b)
    assert len({digest_of(1.0), digest_of(2.0), digest_of(math.inf)}) == 3


def test_differences_list_each_key_once_in_order() -> None:
    """Keys that only one side has differ too, unless their value is null."""
    left = {"base": 1, "adapters": ["a"], "layout": "x"}
    right = {"programs": 2, "layout": "x", "adapters": ["b"], "nothing": None}
    assert differences(left, right) == ["base", "adapters", "programs"]
    assert differences(left, dict(reversed(left.items()))) == []


def test_json_is_replaced_as_a_whole(tmp_path: Path) -> None:
    """A link in its place is replaced, not followed, and no temporary file stays."""
    file, other = tmp_path / "merge.json", tmp_path / "other.json"
    other.write_text("untouched")
    file.symlink_to(other)
    for data in ({"ä": [1, 2.5, None]}, []):
        write_json(file, data)
        assert read_json(file) == data
    assert other.read_text() == "untouched"
    assert sorted(tmp_path.iterdir()) == [file, other]


def test_failed_write_leaves_the_old_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is never half written: a disk may be full at any byte."""

    def fail(_: int) -> None:
        raise OSError("full")

    write_json(tmp_path / "merge.json", {"size": 1})
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=r"\Afull\Z"):
        write_json(tmp_path / "merge.json", {"size": 2})
    assert read_json(tmp_path / "merge.json") == {"size": 1}


def test_unreadable_json_is_none(tmp_path: Path) -> None:
    """A link is not followed, and a pipe without a writer does not block."""
    file, link, pipe = (tmp_path / name for name in ("file", "link", "pipe"))
    assert read_json(file) is None
    file.write_text('{"size": 1')
    assert read_json(file) is None
    file.write_text("{}")
    link.symlink_to(file)
    os.mkfifo(pipe)
    assert (read_json(file), read_json(link), read_json(pipe)) == ({}, None, None)


def test_new_file_never_replaces_or_follows(tmp_path: Path) -> None:
    """A link to a missing file is refused as well, and its target is not created."""
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "target")
    for _ in range(2):
        with pytest.raises(FileExistsError):
            new_file(link)
    assert not (tmp_path / "target").exists()
    with new_file(tmp_path / "new") as file:
        file.write(b"x")
    with pytest.raises(FileExistsError):
        new_file(tmp_path / "new")
    assert (tmp_path / "new").read_bytes() == b"x"
