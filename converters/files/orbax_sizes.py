"""Checks the sizes of an Orbax checkpoint's arrays before any of them is allocated."""

import math
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxmix.errors import CheckpointError, listing
from jaxmix.untrusted.files import ALWAYS, RATIO, occupied

__all__ = ["check_sizes"]


def check_sizes(reader: Any, folder: Path) -> None:
    """Refuses a checkpoint whose arrays are far larger than its files on disk.

    Args:
        reader: An ``orbax.checkpoint.PyTreeCheckpointer``.
        folder: The checkpoint.

    Raises:
        CheckpointError: If its metadata states shapes that its files can't hold.
    """
    metadata = reader.metadata(folder)
    item = getattr(metadata, "item_metadata", metadata)
    leaves = jax.tree_util.tree_leaves_with_path(getattr(item, "tree", item))
    sizes = {jax.tree_util.keystr(path): _bytes(leaf) for path, leaf in leaves}
    on_disk = sum(occupied(file) for file in folder.rglob("*") if file.is_file())
    # Zeros compress well, and chunks of zeros may be left out, so small arrays are always allowed.
    if sum(sizes.values()) > max(ALWAYS, RATIO * on_disk):
        largest = sorted(sizes, key=lambda name: -sizes[name])[:5]
        raise CheckpointError(
            f"{folder} has {on_disk:,} bytes on disk, but its metadata states arrays of "
            f"{sum(sizes.values()):,} bytes; the largest are:"
            f"{listing(f'{name}: {sizes[name]:,} bytes' for name in largest)}\n"
            "Save or download it again."
        )


def _bytes(leaf: Any) -> int:
    """Returns the number of bytes that a leaf's metadata states."""
    shape, dtype = getattr(leaf, "shape", None) or (), getattr(leaf, "dtype", None)
    return math.prod(map(int, shape)) * (8 if dtype is None else np.dtype(dtype).itemsize)
