"""MXFP4, the format of gpt-oss's experts: floats of 4 bits in blocks of 32 with a power of two.

``NAME_blocks`` (experts, out, groups, 16) holds two codes per byte, the first one in the low bits;
``NAME_scales`` (experts, out, groups) holds exponents + 127. The weight NAME has the shape that it
has in transformers, (experts, in, out), since these experts multiply from the right.
"""

from dataclasses import dataclass

import numpy as np

from jaxmix.converters.checkpoints.huggingface import Stored
from jaxmix.converters.checkpoints.quantization.packed import (
    Packed,
    Problem,
    Readout,
    Source,
    stored_fields,
)
from jaxmix.converters.checkpoints.slicing import read_slice

__all__ = ["power_of_two", "read"]

_BLOCKS, _SCALES = "_blocks", "_scales"
# The value of each 4-bit code: a sign, two bits of exponent, one of mantissa.
_E2M1 = np.array([0.0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
_PAIRS = _E2M1[np.stack([np.arange(256) & 15, np.arange(256) >> 4], axis=-1)]


@dataclass(frozen=True)
class Experts(Packed):
    """The weights of experts, (experts, in, out).

    Args:
        scale: The exponents.
    """

    scale: Stored

    def rows(self, part: slice) -> np.ndarray:
        """See `Packed`; a row is an expert."""
        # Look up both numbers of a byte at once.
        values = _PAIRS[read_slice(self.main, (part,))]
        values = values.reshape(*values.shape[:-2], 2 * values.shape[-2])
        with np.errstate(over="ignore"):
            values *= power_of_two(read_slice(self.scale, (part,)))[..., None]
        experts, out, groups, size = values.shape
        return np.ascontiguousarray(values.reshape(experts, out, groups * size).swapaxes(1, 2))


def power_of_two(exponents: np.ndarray) -> np.ndarray:
    """Returns ``2 ** (exponent − 127)`` in float32 for exponents in bytes; 255 is NaN."""
    with np.errstate(over="ignore"):
        powers = np.ldexp(np.float32(1), exponents.astype(np.int32) - 127)
    return np.where(exponents == 255, np.float32(np.nan), powers)


def read(source: Source, readout: Readout) -> None:
    """Adds the experts that are packed in MXFP4.

    Args:
        source: The checkpoint.
        readout: Collects the weights.
    """
    for name, tensor in source.tensors.items():
        weight = name.removesuffix(_BLOCKS)
        if weight != name and tensor.dtype == "U8":
            scale = source.tensors.get(weight + _SCALES)
            readout.add(_experts(weight, tensor, scale), name, weight + _SCALES)


def _experts(name: str, blocks: Stored, scale: Stored | None) -> Packed | Problem:
    """Reads the weights of experts, or returns the problem with them."""
    if scale is None:
        return Problem(f"{blocks.name} {blocks.shape}: {name}{_SCALES} is missing")
    if len(blocks.shape) != 4 or scale.dtype != "U8" or scale.shape != blocks.shape[:-1]:
        return Problem(
            f"{blocks.name} {blocks.shape}: {scale.name} is {scale.dtype} {scale.shape}, expected "
            "blocks (experts, out, groups, bytes) and scales U8 (experts, out, groups)"
        )
    experts, out, groups, size = blocks.shape
    shape = (experts, groups * size * 2, out)
    return Experts(*stored_fields(name, shape, blocks), blocks, "MXFP4", scale)
