"""Packed tensors as readers get them, from one file."""

from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from jaxmix.converters.checkpoints.huggingface import Stored, read_checkpoint
from jaxmix.converters.checkpoints.quantization.packed import Readout, Source

__all__ = ["collected", "stored"]


def stored(folder: Path, tensors: dict[str, Any]) -> dict[str, Stored]:
    """Writes a file, and returns where each tensor is in it."""
    save_file({n: np.ascontiguousarray(x) for n, x in tensors.items()}, folder / "x.safetensors")
    return read_checkpoint(folder / "x.safetensors").tensors


def collected(read: Any, folder: Path, tensors: dict[str, Any], **settings: Any) -> Readout:
    """Returns what a reader finds among tensors."""
    readout = Readout()
    read(Source(stored(folder, tensors), settings), readout)
    return readout
