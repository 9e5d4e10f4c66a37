"""Tensors with other rows than the base's: more, fewer, or all of them new."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxmix.converters.checkpoints.huggingface import FLOATS, Stored
from jaxmix.errors import CheckpointError

__all__ = ["Grown", "grown"]


@dataclass(frozen=True, eq=False)
class Grown(Stored):
    """A tensor that begins with rows of the base's and ends with rows that are in memory.

    Args:
        stored: The base's tensor; None if there is none.
        extra: The rows after those, in the tensor's dtype.
    """

    stored: Stored | None
    extra: np.ndarray

    def rows(self, part: slice, read: Callable[[Stored, slice], np.ndarray]) -> np.ndarray:
        """Returns a run of rows; ``read`` reads those that the base has."""
        kept = self.shape[0] - len(self.extra)
        found = []
        if self.stored is not None and part.start < kept:
            found.append(read(self.stored, slice(part.start, min(part.stop, kept))))
        if part.stop > kept or not found:
            new = self.extra[max(0, part.start - kept) : max(0, part.stop - kept)]
            found.append(new.astype(found[0].dtype) if found else new)
        return found[0] if len(found) == 1 else np.concatenate(found)


def grown(stored: Stored, rows: int, extra: np.ndarray) -> Grown:
    """Gives a tensor another number of rows.

    Args:
        stored: The base's tensor.
        rows: How many rows the result has.
        extra: Its rows from the base's last one on; none if it has no more than the base.

    Raises:
        CheckpointError: If numbers lie beyond the tensor's dtype.
    """
    return _made(stored.name, stored.dtype, (rows, *stored.shape[1:]), stored, extra, stored.file)


def new(name: str, dtype: str, array: np.ndarray, file: Path) -> Grown:
    """Makes a tensor that the base has not, for the shard ``file``."""
    return _made(name, dtype, array.shape, None, array, file)


def _made(
    name: str,
    dtype: str,
    shape: tuple[int, ...],
    stored: Stored | None,
    extra: np.ndarray,
    file: Path,
) -> Grown:
    with np.errstate(over="ignore"):
        cast = np.ascontiguousarray(extra.astype(FLOATS[dtype]))
    if (
        np.isfinite(extra.astype(np.float64)).all()
        and not np.isfinite(cast.astype(np.float32)).all()
    ):
        raise CheckpointError(
            f"{name}: new rows lie beyond what {dtype} holds. Convert the base to bfloat16 or "
            "float32 first."
        )
    size = math.prod(shape) * np.dtype(FLOATS[dtype]).itemsize
    return Grown(name, dtype, shape, file, 0, size, stored, cast)
