"""Detects files that duplicate a checkpoint's own tensors, by names, shapes and numbers.

Nothing is unpickled: of a PyTorch archive, only the strings in its pickle are read.
"""

import math
import pickletools
import zipfile
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import IO

import numpy as np

from jaxmix.converters.checkpoints.huggingface import FLOATS, Stored, read_shard
from jaxmix.errors import CheckpointError
from jaxmix.models.checkpoint import safetensors_file

__all__ = ["is_copy"]

# The number of tensors that are compared, and of numbers at the start of each.
_TENSORS, _NUMBERS = 16, 1 << 14
# The relative error of a cast to bfloat16.
_ROUNDING = 2.0**-7
# A legacy PyTorch file is a sequence of pickles; one of the first five has the tensors' names.
_PICKLES = 5


def is_copy(path: Path, tensors: Mapping[str, Stored]) -> bool:
    """Whether most of a file's tensors duplicate those of a checkpoint.

    Args:
        path: A safetensors file, a PyTorch archive or a NumPy archive; False for other files.
        tensors: The checkpoint's own tensors.

    Returns:
        True for a copy, possibly in another dtype, and for an archive with most of the checkpoint's
        names, whose numbers are not read. A damaged safetensors file counts as a copy, since
        nothing can use it.
    """
    if path.suffix == ".safetensors":
        return _duplicates(path, tensors)
    if path.suffix == ".npz":
        names = set(_zip_names(path))
        names = {name.removesuffix(".npy") for name in names}
    elif path.suffix in (".bin", ".ckpt", ".pt", ".pth"):
        names = set(_pickled_strings(path))
    else:
        return False
    ours = [name for name in tensors if "." in name] or list(tensors)
    return 2 * sum(name in names for name in ours) > len(ours)


def _duplicates(path: Path, tensors: Mapping[str, Stored]) -> bool:
    """Whether most tensors of a safetensors file equal the checkpoint's in name, shape, numbers."""
    try:
        safetensors_file(path)
        theirs = read_shard(path.parent, path).tensors
    except (CheckpointError, OSError, ValueError, KeyError, TypeError):
        return True
    pairs = [
        (tensors[other.name], other)
        for other in theirs
        if other.name in tensors and tensors[other.name].shape == other.shape
    ]
    if not pairs or 2 * len(pairs) <= len(theirs):
        return False
    step = math.ceil(len(pairs) / _TENSORS)
    return all(_is_close(ours, other) for ours, other in pairs[::step])


def _is_close(ours: Stored, other: Stored) -> bool:
    """Whether two tensors begin with the same numbers, up to a cast of the dtype."""
    if ours.dtype == other.dtype:
        return _start(ours) == _start(other)
    if ours.dtype not in FLOATS or other.dtype not in FLOATS:
        return True  # quantized: only names and shapes are compared
    a, b = (np.frombuffer(_start(x), FLOATS[x.dtype]).astype(np.float64) for x in (ours, other))
    return bool(np.allclose(a, b, rtol=_ROUNDING, atol=1e-6))


def _start(tensor: Stored) -> bytes:
    """Returns the bytes of a tensor's first numbers."""
    count = max(1, math.prod(tensor.shape))
    size = tensor.size // count * min(count, _NUMBERS)
    with tensor.file.open("rb") as file:
        file.seek(tensor.start)
        return file.read(size)


def _zip_names(path: Path) -> list[str]:
    """Returns the names in a zip archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return []


def _pickled_strings(path: Path) -> Iterator[str]:
    """Yields the strings in a PyTorch file's pickle, which include the names of its tensors."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                name = next((n for n in archive.namelist() if n.endswith("data.pkl")), None)
                if name is not None:
                    with archive.open(name) as file:
                        yield from _strings(file)
        else:
            with path.open("rb") as file:
                for _ in range(_PICKLES):
                    yield from _strings(file)
    except (OSError, ValueError, zipfile.BadZipFile):
        return


def _strings(file: IO[bytes]) -> Iterator[str]:
    """Yields the strings of one pickle from its opcodes, without running it."""
    for _, value, _ in islice(pickletools.genops(file), 1 << 24):
        if isinstance(value, str):
            yield value
