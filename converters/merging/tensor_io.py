"""Reads, copies and writes tensors' bytes in files."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxmix.converters.checkpoints.huggingface import FLOATS, Stored
from jaxmix.converters.checkpoints.quantization import Packed
from jaxmix.converters.merging.resized_tensor import ResizedTensor
from jaxmix.errors import CheckpointError

__all__ = [
    "copy_bytes",
    "drop_from_cache",
    "fsync",
    "read_rows",
    "row_bytes",
    "stored_chunks",
    "write_bytes",
]

# Bytes copied at a time where the system does not copy files itself.
CHUNK = 8 << 20
# Bytes that the system is asked to copy at a time, and between two calls of ``progress``.
STRIDE = 64 << 20
# XLA uses NumPy arrays at such addresses without copying them.
_ALIGNMENT = 64
# The errors of a system that does not support copying between these files.
_UNSUPPORTED = {errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM}


def row_bytes(tensor: Stored) -> int:
    """Returns the stored bytes of one row of a tensor, or of the whole scalar."""
    return tensor.size // tensor.shape[0] if tensor.shape and tensor.shape[0] else tensor.size


def read_rows(tensor: Stored, rows: slice) -> np.ndarray:
    """Reads a run of rows in the tensor's dtype, one of `FLOATS`; packed weights in float32.

    Args:
        tensor: The tensor.
        rows: The rows, with start and stop; all of a scalar.

    Returns:
        The rows (stop − start, …), in memory that JAX can use without copying.

    Raises:
        CheckpointError: If the file is too short.
    """
    if isinstance(tensor, ResizedTensor):
        return tensor.rows(rows, read_rows)
    if isinstance(tensor, Packed):
        return tensor.rows(rows)
    return _rows(tensor, rows, FLOATS[tensor.dtype])


def _rows(tensor: Stored, rows: slice, dtype: Any) -> np.ndarray:
    """Reads a run of rows in the stored dtype."""
    is_whole = not tensor.shape or rows == slice(0, tensor.shape[0])
    width = row_bytes(tensor)
    size = tensor.size if is_whole else (rows.stop - rows.start) * width
    start = tensor.start + (0 if is_whole else rows.start * width)
    buffer = np.empty(size + _ALIGNMENT, np.uint8)
    first = -buffer.ctypes.data % _ALIGNMENT
    data = buffer[first : first + size]
    with tensor.file.open("rb", buffering=0) as file:
        file.seek(start)
        fill(file, data, tensor)
    shape = tensor.shape if is_whole else (rows.stop - rows.start, *tensor.shape[1:])
    return data.view(dtype).reshape(shape)


def fill(file: Any, data: np.ndarray, tensor: Stored) -> None:
    """Fills an array of bytes from a file."""
    at = 0
    while at < data.size:
        count = file.readinto(data[at : at + (1 << 30)])  # the system reads at most 2 GB at a time
        if not count:
            raise CheckpointError(tensor.truncation_message)
        at += count


def stored_chunks(tensor: Stored, begin: int = 0, end: int | None = None) -> Iterator[memoryview]:
    """Yields a tensor's stored bytes, a few megabytes at a time."""
    end = tensor.size if end is None else end
    with tensor.file.open("rb", buffering=0) as file:
        file.seek(tensor.start + begin)
        for start in range(begin, end, CHUNK):
            data = np.empty(min(CHUNK, end - start), np.uint8)
            fill(file, data, tensor)
            yield data.data


def copy_bytes(tensor: Stored, begin: int, end: int, into: Path, at: int) -> int:
    """Copies some of a tensor's bytes into an existing file.

    The system copies them itself where it can, on some disks without moving any data.

    Args:
        tensor: The tensor.
        begin: The first byte, counted from the tensor's first.
        end: The byte after the last one.
        into: The file to write to.
        at: The position of the first byte in that file.

    Returns:
        The number of bytes.

    Raises:
        CheckpointError: If the tensor's file is too short.
    """
    done = _copy_by_system(tensor, begin, end, into, at)
    for piece in stored_chunks(tensor, begin + done, end):
        done += write_bytes(piece, into, at + done)
    return done


def _copy_by_system(tensor: Stored, begin: int, end: int, into: Path, at: int) -> int:
    """Lets the system copy the bytes; returns how many it copied: all or none."""
    done = 0
    if not hasattr(os, "copy_file_range"):
        return done
    with tensor.file.open("rb") as file, into.open("r+b") as out:
        while begin + done < end:
            size = min(STRIDE, end - begin - done)
            positions = (tensor.start + begin + done, at + done)
            try:
                count = os.copy_file_range(file.fileno(), out.fileno(), size, *positions)
            except OSError as error:
                if done or error.errno not in _UNSUPPORTED:
                    raise
                return 0
            if count == 0:
                raise CheckpointError(tensor.truncation_message)
            done += count
    return done


def write_bytes(data: Any, into: Path, at: int) -> int:
    """Writes all bytes of an array into an existing file.

    Args:
        data: The bytes.
        into: The file.
        at: The position of the first byte in that file.

    Returns:
        The number of bytes.
    """
    remaining = memoryview(data).cast("B")
    size = len(remaining)
    with into.open("r+b", buffering=0) as file:
        file.seek(at)
        while remaining:
            # The system writes at most 2 GB at a time.
            remaining = remaining[file.write(remaining[: 1 << 30]) :]
    return size


def fsync(path: Path) -> None:
    """Waits until a file or a folder is on the disk; a folder only where the system supports it."""
    try:
        descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    except PermissionError:  # Windows opens no folders
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def drop_from_cache(path: Path) -> None:
    """Asks the system to drop a file from its page cache, to read it from the disk afterwards."""
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
