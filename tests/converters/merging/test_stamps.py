"""A base that changes while it is merged or verified: an error, and no output is put in place."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxmix.converters.checkpoints.huggingface import read_checkpoint
from jaxmix.converters.merging import merge_checkpoint, verify_merge
from jaxmix.converters.merging.stamps import check_unchanged, stamps_of
from jaxmix.errors import CheckpointError

from ...messages import full_text
from ..bases import Adapters, contents, mixed


def _saved_anew(file: Path) -> None:
    """Saves as save_pretrained does: a new file of the same name with other numbers."""
    tensors = {name: x + 1 for name, x in load_file(file).items()}
    save_file(tensors, file.with_name("other"), metadata={"format": "pt"})
    file.with_name("other").replace(file)


def _longer_header(file: Path) -> None:
    save_file(load_file(file), file, metadata={"format": "pt", "note": "x" * 64})


def _in_place(file: Path) -> None:
    with file.open("r+b") as opened:
        opened.seek(-8, os.SEEK_END)
        opened.write(b"\0" * 8)
    os.utime(file, ns=(1, 1))  # timestamps of some file systems are coarse


def _same_file_again(file: Path) -> None:
    status = file.stat()
    shutil.copy2(file, file.with_name("other"))
    os.utime(file.with_name("other"), ns=(status.st_atime_ns, status.st_mtime_ns))
    file.with_name("other").replace(file)


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "saved anew": (
        _saved_anew,
        r"it was replaced by another file|its header changed|it has [\d,]+ bytes, before 1,248",
    ),
    "a longer header": (_longer_header, "it has 1,304 bytes, before 1,248"),
    "in place": (_in_place, "it was written to"),
    "the same again": (_same_file_again, "it was replaced by another file"),
    "removed": (Path.unlink, r"it can no longer be read \(No such file or directory\)"),
}


@pytest.mark.parametrize(("change", "text"), CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("when", ["writing", "verifying"])
def test_base_changes(
    when: str,
    change: Callable[[Path], object],
    text: str,
    sharded: Path,
    adapters: Adapters,
    tmp_path: Path,
) -> None:
    """The base changes while shards are written, or while the output is read back."""
    file = sharded / "model-00001-of-00003.safetensors"
    size = sum(path.stat().st_size for path in sharded.glob("*.safetensors"))
    counts: list[int] = []

    def progress(count: int, *_: Any) -> None:
        # Verification counts from the beginning again.
        is_time = not counts if when == "writing" else bool(counts) and count < max(counts)
        if is_time and file.exists() and -1 not in counts:
            change(file)
            counts.append(-1)
        counts.append(count)

    message = (
        rf"\Athe base changed while it was being read:\n  {re.escape(str(file))}: ({text})\nThe "
        r"output computed from it is not used\. Merge again when no other program writes to the "
        r"base\.\Z"
    )
    with pytest.raises(CheckpointError, match=message):
        merge_checkpoint(sharded, mixed(adapters), tmp_path / "out", verify=True, progress=progress)
    assert -1 in counts and max(counts) <= size
    assert not list(tmp_path.glob("out*"))


def test_base_changes_during_verification(
    sharded: Path, adapters: Adapters, tmp_path: Path
) -> None:
    """`verify_merge` notices it too."""
    merge_checkpoint(sharded, mixed(adapters), tmp_path / "out")
    before, seen = contents(tmp_path / "out"), list[int]()

    def progress(*_: Any) -> None:
        if not seen:
            _same_file_again(sharded / "model-00003-of-00003.safetensors")
        seen.append(1)

    message = full_text(
        f"the base changed while it was being read:\n  {sharded}/model-00003-of-00003.safetensors: "
        "it was replaced by another file\nThe output computed from it is not used. Merge again "
        "when no other program writes to the base."
    )
    with pytest.raises(CheckpointError, match=message):
        verify_merge(sharded, mixed(adapters), tmp_path / "out", progress=progress)
    assert contents(tmp_path / "out") == before


def test_old_output_stays(sharded: Path, adapters: Adapters, tmp_path: Path) -> None:
    """The old output stays even with `force`."""
    merge_checkpoint(sharded, [], tmp_path / "out")
    before = contents(tmp_path / "out")

    def progress(*_: Any) -> None:
        _in_place(sharded / "model-00002-of-00003.safetensors")

    with pytest.raises(
        CheckpointError,
        match=full_text(
            "the base changed while it was being read:\n"
            f"  {tmp_path}/sharded/model-00002-of-00003.safetensors: it was "
            "written to\n"
            "The output computed from it is not used. Merge again when "
            "no other program writes to the base."
        ),
    ):
        merge_checkpoint(sharded, mixed(adapters), tmp_path / "out", force=True, progress=progress)
    assert contents(tmp_path / "out") == before and not list(tmp_path.glob("out?*"))


def test_unchanged_files_pass(sharded: Path) -> None:
    """Reading a file does not change it; several changes are all listed."""
    stamps = stamps_of(read_checkpoint(sharded))
    for file in stamps:
        load_file(file)
    check_unchanged(stamps)
    files = sorted(stamps)
    for file in files[:2]:
        _in_place(file)
    check_unchanged(stamps, files[2:])
    with pytest.raises(CheckpointError) as caught:
        check_unchanged(stamps)
    assert all(f"{file}: it was written to" in str(caught.value) for file in files[:2])
    assert str(files[2]) not in str(caught.value)


def test_header_of_invalid_length(tmp_path: Path) -> None:
    """An invalid length in the first eight bytes allocates nothing."""
    file = tmp_path / "model.safetensors"
    save_file({"norm.weight": np.ones(3, np.float32)}, file)
    stamps = stamps_of(read_checkpoint(tmp_path))
    file.write_bytes(b"\xff" * file.stat().st_size)
    with pytest.raises(
        CheckpointError,
        match=full_text(
            "the base changed while it was being read:\n"
            f"  {tmp_path}/model.safetensors: its header changed\n"
            "The output computed from it is not used. Merge again when "
            "no other program writes to the base."
        ),
    ):
        check_unchanged(stamps)
