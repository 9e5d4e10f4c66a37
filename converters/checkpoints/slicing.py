"""Reads slices of tensors in safetensors files, and little more than the requested bytes.

A file stores each tensor contiguously, row after row. So a slice of rows takes one read, and a
slice of columns takes one read per row.
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

# safetensors' names of other dtypes of models' buffers and packed weights.
_INTEGERS: dict[str, Any] = {
    "BOOL": np.bool_,
    "U8": np.uint8,
    "I8": np.int8,
    "I16": np.int16,
    "I32": np.int32,
    "I64": np.int64,
}
DTYPES = FLOATS | _INTEGERS
# Dtypes of 8 bits, which are meaningless without their scales.
FLOATS_8: dict[str, Any] = {
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "F8_E8M0": ml_dtypes.float8_e8m0fnu,
}
_READABLE = DTYPES | FLOATS_8
# Pieces of fewer bytes are read together with the gaps between them, as a disk would.
_SHORT = 512


def read_slice(
    stored: Stored, index: tuple[slice, ...] = (), counter: Counter[str] | None = None
) -> np.ndarray:
    """Reads ``tensor[index]`` from a file, and little more than these bytes.

    Args:
        stored: The tensor in its file.
        index: Slices of the first axes, with step 1.
        counter: If given, the number of bytes read is added under the tensor's name.

    Returns:
        The numbers, in the file's dtype.

    Raises:
        CheckpointError: If the file is too short.

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
            for at, offset, run_shape in _runs(shape, kept, out.dtype.itemsize):
                data = np.empty(run_shape, out.dtype)
                _read(file, data, stored, stored.start + offset * out.dtype.itemsize)
                inner = tuple(slice(part.start, part.stop) for part in kept[len(at) + 1 :])
                out[at] = data[(slice(None), *inner)]
                if counter is not None:
                    counter[stored.name] += data.nbytes
    return out if stored.shape else out[0]


def _runs(
    shape: tuple[int, ...], kept: list[range], item: int
) -> Iterator[tuple[tuple[int, ...], int, tuple[int, ...]]]:
    """Yields contiguous runs of the file: their index in the slice, offset, and shape."""
    axis = len(shape) - 1
    # Skip inner axes that are kept whole, and more of them while the runs are short.
    while axis and (
        len(kept[axis]) == shape[axis]
        or len(kept[axis]) * math.prod(shape[axis + 1 :]) * item < _SHORT
    ):
        axis -= 1
    steps = [math.prod(shape[k + 1 :]) for k in range(len(shape))]
    for at in np.ndindex(*(len(part) for part in kept[:axis])):
        firsts = [part[i] for part, i in zip(kept, (*at, 0), strict=False)]
        offset = sum(first * step for first, step in zip(firsts, steps, strict=False))
        yield at, offset, (len(kept[axis]), *shape[axis + 1 :])


def _read(file: RawIOBase, data: np.ndarray, stored: Stored, start: int) -> None:
    """Fills an array from a position in a file."""
    view = data.reshape(-1).view(np.uint8).data
    file.seek(start)
    while view:
        count = file.readinto(view)
        if not count:
            raise CheckpointError(
                f"{stored.file} ends within the tensor {stored.name}. Was the file changed while "
                "it was being read? Download or save it again."
            )
        view = view[count:]


def ranges(index: tuple[slice, ...] | None, shape: tuple[int, ...]) -> list[range]:
    """Returns the indices of a slice along each axis.

    Args:
        index: Slices of the first axes; None for the whole tensor.
        shape: The tensor's shape.
    """
    parts = (*(index or ()), *[slice(None)] * len(shape))
    return [range(*part.indices(size)) for part, size in zip(parts, shape, strict=False)]
