"""Slices of tensors in safetensors files: little more is read than what is asked for.

A file has each tensor's numbers in one run, row after row. So a slice of rows is one read, and a
slice of columns is one read a row.
"""

import math
from collections import Counter
from collections.abc import Iterator
from io import RawIOBase
from typing import Any

import ml_dtypes
import numpy as np

from jaxmix.converters.checkpoints.huggingface import FLOATS, Stored
from jaxmix.errors import CheckpointError

__all__ = ["DTYPES", "FLOATS_8", "ranges", "read_slice"]

# safetensors' names of other dtypes that a model's buffers, or packed weights, may have.
_WHOLE: dict[str, Any] = {
    "BOOL": np.bool_,
    "U8": np.uint8,
    "I8": np.int8,
    "I16": np.int16,
    "I32": np.int32,
    "I64": np.int64,
}
DTYPES = FLOATS | _WHOLE
# Those of 8 bits, which stand for nothing without their scales.
FLOATS_8: dict[str, Any] = {
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "F8_E8M0": ml_dtypes.float8_e8m0fnu,
}
_READABLE = DTYPES | FLOATS_8
# Pieces of fewer bytes are read along with what lies between them, as a disk would.
_SHORT = 512


def read_slice(
    stored: Stored, index: tuple[slice, ...] = (), counter: Counter[str] | None = None
) -> np.ndarray:
    """``tensor[index]`` out of a file, of which little more than these bytes is read.

    Args:
        stored: where the tensor lies.
        index: slices of the first axes, of step 1.
        counter: if given, the bytes that were read are added to its entry of the tensor's name.

    Returns:
        The numbers, in the file's dtype.

    Raises:
        CheckpointError: if the file ends before.

    Example:
        >>> import tempfile
        >>> from safetensors.numpy import save_file
        >>> from jaxmix.converters.checkpoints.huggingface import read_checkpoint
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_file({"w": np.arange(6.0).reshape(3, 2)}, folder + "/model.safetensors")
        ...     read_slice(read_checkpoint(folder).tensors["w"], (slice(1, 2),)).tolist()
        [[2.0, 3.0]]

    Source: https://github.com/huggingface/safetensors, format.
    """
    shape = stored.shape or (1,)
    kept = ranges(index, shape)
    out = np.empty([len(part) for part in kept], _READABLE[stored.dtype])
    if out.size:
        with stored.file.open("rb", buffering=0) as file:
            for at, place, run in _runs(shape, kept, out.dtype.itemsize):
                data = np.empty(run, out.dtype)
                _read(file, data, stored, stored.start + place * out.dtype.itemsize)
                inner = tuple(slice(part.start, part.stop) for part in kept[len(at) + 1 :])
                out[at] = data[(slice(None), *inner)]
                if counter is not None:
                    counter[stored.name] += data.nbytes
    return out if stored.shape else out[0]


def _runs(
    shape: tuple[int, ...], kept: list[range], item: int
) -> Iterator[tuple[tuple[int, ...], int, tuple[int, ...]]]:
    """What lies together in the file: where it belongs, where it starts, and its shape."""
    axis = len(shape) - 1
    # Along an axis from which on everything is kept, and farther out while pieces are short.
    while axis and (
        len(kept[axis]) == shape[axis]
        or len(kept[axis]) * math.prod(shape[axis + 1 :]) * item < _SHORT
    ):
        axis -= 1
    steps = [math.prod(shape[k + 1 :]) for k in range(len(shape))]
    for at in np.ndindex(*(len(part) for part in kept[:axis])):
        firsts = [part[i] for part, i in zip(kept, (*at, 0), strict=False)]
        place = sum(first * step for first, step in zip(firsts, steps, strict=False))
        yield at, place, (len(kept[axis]), *shape[axis + 1 :])


def _read(file: RawIOBase, data: np.ndarray, stored: Stored, start: int) -> None:
    """Fills an array from a place in a file."""
    view = data.reshape(-1).view(np.uint8).data
    file.seek(start)
    while view:
        count = file.readinto(view)
        if not count:
            raise CheckpointError(
                f"{stored.file} ends within {stored.name}. Was it changed meanwhile? Download or "
                "save it again, whole."
            )
        view = view[count:]


def ranges(index: tuple[slice, ...] | None, shape: tuple[int, ...]) -> list[range]:
    """The indices of a slice along each axis.

    Args:
        index: slices of the first axes; None for all.
        shape: the tensor's shape.
    """
    parts = (*(index or ()), *[slice(None)] * len(shape))
    return [range(*part.indices(size)) for part, size in zip(parts, shape, strict=False)]
