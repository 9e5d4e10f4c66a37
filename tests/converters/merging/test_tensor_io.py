"""Bytes of tensors in files."""

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxmix.converters.checkpoints.huggingface import Stored
from jaxmix.converters.merging import tensor_io
from jaxmix.converters.merging.tensor_io import (
    copy_bytes,
    read_rows,
    row_bytes,
    stored_chunks,
    write_bytes,
)
from jaxmix.errors import CheckpointError

from ...messages import full_text

ROWS = np.arange(15, dtype=np.float32).reshape(5, 3)


@pytest.fixture
def stored(tmp_path: Path) -> Stored:
    """A tensor that starts at an odd byte and is followed by others."""
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"header." + ROWS.tobytes() + b"next")
    return Stored("q.weight", "F32", ROWS.shape, file, 7, ROWS.nbytes)


def test_runs_of_rows_are_aligned_for_jax(stored: Stored) -> None:
    """Whatever the position in the file; XLA copies arrays at other addresses."""
    for start in range(len(ROWS)):
        for stop in range(start + 1, len(ROWS) + 1):
            run = read_rows(stored, slice(start, stop))
            np.testing.assert_array_equal(run, ROWS[start:stop], strict=True)
            assert run.ctypes.data % 64 == 0


@pytest.mark.parametrize(("shape", "expected"), [((), 4), ((0, 3), 0), ((5, 3), 12), ((5,), 4)])
def test_row_of_a_scalar_is_the_whole(shape: tuple[int, ...], expected: int) -> None:
    """A tensor without rows has rows of no bytes, instead of a division by zero."""
    size = 4 * int(np.prod(shape))
    assert row_bytes(Stored("x", "F32", shape, Path("x"), 0, size)) == expected


def test_scalar_is_read_without_its_axis(stored: Stored) -> None:
    """The slice of a scalar has one row, and the result no axis."""
    scalar = Stored("scale", "F32", (), stored.file, 7 + 4 * 4, 4)
    assert read_rows(scalar, slice(0, 1)).shape == ()
    assert float(read_rows(scalar, slice(0, 1))) == 4.0


@pytest.mark.parametrize("is_supported", [True, False])
def test_copied_bytes_change_nothing_around_them(
    is_supported: bool, stored: Stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the system's copy and without, in several pieces."""

    def refuse(*_: Any) -> int:
        raise OSError(errno.EXDEV, "other disk")

    monkeypatch.setattr(tensor_io, "CHUNK", 5)
    monkeypatch.setattr(tensor_io, "STRIDE", 5)
    if not is_supported:
        monkeypatch.setattr(tensor_io.os, "copy_file_range", refuse, raising=False)
    out = tmp_path / "out"
    out.write_bytes(b"." * 40)
    assert copy_bytes(stored, 4, 21, out, 9) == 17
    assert out.read_bytes() == b"." * 9 + ROWS.tobytes()[4:21] + b"." * 14
    assert b"".join(map(bytes, stored_chunks(stored, 4, 21))) == ROWS.tobytes()[4:21]
    assert copy_bytes(stored, 8, 8, out, 0) == 0


def test_other_errors_of_the_system_are_raised(
    stored: Stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk must not be taken for a system without such copies."""

    def fail(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(tensor_io.os, "copy_file_range", fail, raising=False)
    (tmp_path / "out").touch()
    with pytest.raises(OSError, match=full_text("[Errno 28] full")):
        copy_bytes(stored, 0, 4, tmp_path / "out", 0)


def test_truncated_file_is_an_error(stored: Stored, tmp_path: Path) -> None:
    """In reading and in copying: no zeros take the place of missing bytes."""
    data = stored.file.read_bytes()
    stored.file.write_bytes(data[:50])
    (tmp_path / "out").touch()
    message = full_text(
        f"{stored.file} ends within the tensor q.weight. Was the file changed while it was being "
        "read? Merge again."
    )
    with pytest.raises(CheckpointError, match=message):
        read_rows(stored, slice(3, 5))
    with pytest.raises(CheckpointError, match=message):
        copy_bytes(stored, 0, stored.size, tmp_path / "out", 0)
    np.testing.assert_array_equal(read_rows(stored, slice(0, 3)), ROWS[:3])


def test_arrays_of_any_dtype_are_written_as_bytes(tmp_path: Path) -> None:
    """At a position in a file that exists."""
    file = tmp_path / "out"
    file.write_bytes(b"." * 8)
    assert write_bytes(np.array([1, 2], np.uint16), file, 2) == 4
    assert file.read_bytes() == b"..\x01\x00\x02\x00.."
