"""Bytes of files: read into aligned memory, copied by the system, written where they belong."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxmix.converters.checkpoints.huggingface import FLOATS, Stored
from jaxmix.converters.checkpoints.quantization import Packed
from jaxmix.converters.merging.grown import Grown
from jaxmix.errors import CheckpointError

__all__ = ["copied", "forget", "read_rows", "row_bytes", "stored_pieces", "synced", "written"]

# Bytes at a time where the system does not copy by itself, and between two words of progress.
CHUNK = 8 << 20
# What the system is asked to copy at once.
STRIDE = 64 << 20
# XLA takes memory that begins at such a place as it is, and copies other.
_ALIGNED = 64
# What it says where it can't copy from here to there.
_CAN_NOT = {errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM}


def row_bytes(tensor: Stored) -> int:
    """The bytes of one of a tensor's rows as the file has them; of a scalar all of them."""
    return tensor.size // tensor.shape[0] if tensor.shape and tensor.shape[0] else tensor.size


def read_rows(tensor: Stored, rows: slice) -> np.ndarray:
    """A run of a tensor's rows, of one of `FLOATS`; of a packed weight in float32.

    Args:
        tensor: the tensor.
        rows: the run, start and stop given; of a scalar the whole.

    Returns:
        The rows (stop − start, …), in memory that JAX need not copy.

    Raises:
        CheckpointError: if the file ends before.
    """
    if isinstance(tensor, Grown):
        return tensor.rows(rows, read_rows)
    if isinstance(tensor, Packed):
        return tensor.rows(rows)
    return _rows(tensor, rows, FLOATS[tensor.dtype])


def _rows(tensor: Stored, rows: slice, dtype: Any) -> np.ndarray:
    """A run of rows as they are stored."""
    whole = not tensor.shape or rows == slice(0, tensor.shape[0])
    width = row_bytes(tensor)
    size = tensor.size if whole else (rows.stop - rows.start) * width
    start = tensor.start + (0 if whole else rows.start * width)
    room = np.empty(size + _ALIGNED, np.uint8)
    first = -room.ctypes.data % _ALIGNED
    data = room[first : first + size]
    with tensor.file.open("rb", buffering=0) as file:
        file.seek(start)
        fill(file, data, tensor)
    shape = tensor.shape if whole else (rows.stop - rows.start, *tensor.shape[1:])
    return data.view(dtype).reshape(shape)


def fill(file: Any, data: np.ndarray, tensor: Stored) -> None:
    """Reads until an array of bytes is full."""
    at = 0
    while at < data.size:
        count = file.readinto(data[at : at + (1 << 30)])  # it gives no more than 2 GB
        if not count:
            raise CheckpointError(tensor.cut)
        at += count


def stored_pieces(tensor: Stored, begin: int = 0, end: int | None = None) -> Iterator[memoryview]:
    """A tensor's bytes as they are, a few megabytes at a time."""
    end = tensor.size if end is None else end
    with tensor.file.open("rb", buffering=0) as file:
        file.seek(tensor.start + begin)
        for start in range(begin, end, CHUNK):
            data = np.empty(min(CHUNK, end - start), np.uint8)
            fill(file, data, tensor)
            yield data.data


def copied(tensor: Stored, begin: int, end: int, into: Path, at: int) -> int:
    """Copies a part of a tensor's bytes to a place of a file that is there.

    The system does so by itself where it can: on some disks without copying at all.

    Args:
        tensor: the tensor.
        begin: the first byte, counted from the tensor's own.
        end: the byte after the last one.
        into: the file to write.
        at: where the first byte goes.

    Returns:
        How many bytes these were.

    Raises:
        CheckpointError: if the tensor's file ends before.
    """
    done = _copied_by_the_system(tensor, begin, end, into, at)
    for piece in stored_pieces(tensor, begin + done, end):
        done += written(piece, into, at + done)
    return done


def _copied_by_the_system(tensor: Stored, begin: int, end: int, into: Path, at: int) -> int:
    """How many bytes the system copied: all, or none."""
    done = 0
    if not hasattr(os, "copy_file_range"):
        return done
    with tensor.file.open("rb") as file, into.open("r+b") as out:
        while begin + done < end:
            size = min(STRIDE, end - begin - done)
            places = (tensor.start + begin + done, at + done)
            try:
                count = os.copy_file_range(file.fileno(), out.fileno(), size, *places)
            except OSError as error:
                if done or error.errno not in _CAN_NOT:
                    raise
                return 0
            if count == 0:
                raise CheckpointError(tensor.cut)
            done += count
    return done


def written(data: Any, into: Path, at: int) -> int:
    """Writes bytes to a place of a file that is there, all of them.

    Args:
        data: the bytes.
        into: the file.
        at: where the first one goes.

    Returns:
        How many these were.
    """
    left = memoryview(data).cast("B")
    size = len(left)
    with into.open("r+b", buffering=0) as file:
        file.seek(at)
        while left:
            # The system takes no more than 2 GB at a time.
            left = left[file.write(left[: 1 << 30]) :]
    return size


def synced(path: Path) -> None:
    """Waits until a file or a folder is on the disk; a folder, where the system can."""
    try:
        here = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    except PermissionError:  # Windows opens no folders
        return
    try:
        os.fsync(here)
    finally:
        os.close(here)


def forget(path: Path) -> None:
    """Lets the system drop what it remembers of a file, so that it is read from the disk."""
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
