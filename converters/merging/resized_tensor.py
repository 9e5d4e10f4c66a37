"""Tensors with more or fewer rows than the base's, and tensors that the base lacks."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxmix.converters.checkpoints.huggingface import FLOATS, Stored
from jaxmix.errors import CheckpointError

__all__ = ["ResizedTensor", "new_tensor", "resize_tensor"]


@dataclass(frozen=True, eq=False)
class ResizedTensor(Stored):
    """A tensor that consists of the base's first rows followed by rows held in memory.

    Args:
        stored: The base's tensor, if there is one.
        extra: The rows after the base's, in the tensor's dtype.
    """

    stored: Stored | None
    extra: np.ndarray

    def rows(self, part: slice, read: Callable[[Stored, slice], np.ndarray]) -> np.ndarray:
        """Returns a run of rows; ``read`` reads the rows that the base has."""
        kept = self.shape[0] - len(self.extra)
        parts = []
        if self.stored is not None and part.start < kept:
            parts.append(read(self.stored, slice(part.start, min(part.stop, kept))))
        if part.stop > kept or not parts:
            new = self.extra[max(0, part.start - kept) : max(0, part.stop - kept)]
            parts.append(new.astype(parts[0].dtype) if parts else new)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def resize_tensor(stored: Stored, rows: int, extra: np.ndarray) -> ResizedTensor:
    """Gives a tensor another number of rows.

    Args:
        stored: The base's tensor.
        rows: The number of rows of the result.
        extra: The rows after the base's last one; empty if the result has no more rows.

    Raises:
        CheckpointError: If numbers exceed the range of the tensor's dtype.
    """
    return _build(stored.name, stored.dtype, (rows, *stored.shape[1:]), stored, extra, stored.file)


def new_tensor(name: str, dtype: str, array: np.ndarray, file: Path) -> ResizedTensor:
    """Makes a tensor that the base lacks, for the shard ``file``."""
    return _build(name, dtype, array.shape, None, array, file)


def _build(
    name: str,
    dtype: str,
    shape: tuple[int, ...],
    stored: Stored | None,
    extra: np.ndarray,
    file: Path,
) -> ResizedTensor:
    with np.errstate(over="ignore"):
        cast = np.ascontiguousarray(extra.astype(FLOATS[dtype]))
    if (
        np.isfinite(extra.astype(np.float64)).all()
        and not np.isfinite(cast.astype(np.float32)).all()
    ):
        raise CheckpointError(
            f"{name}: the new rows exceed the range of {dtype}. Convert the base to bfloat16 or "
            "float32 first."
        )
    size = math.prod(shape) * np.dtype(FLOATS[dtype]).itemsize
    return ResizedTensor(name, dtype, shape, file, 0, size, stored, cast)
