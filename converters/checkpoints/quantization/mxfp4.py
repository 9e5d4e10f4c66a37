"""MXFP4, in which gpt-oss has its experts: floats of 4 bits, in blocks of 32 with a power of two.

``NAME_blocks`` (experts, out, groups, 16) holds two codes a byte, the first one in the low bits;
``NAME_scales`` (experts, out, groups) holds exponents + 127. The weight NAME is what transformers
makes of them: (experts, in, out), since these experts multiply from the right.
"""

from dataclasses import dataclass

import numpy as np

from jaxmix.converters.checkpoints.huggingface import Stored
from jaxmix.converters.checkpoints.quantization.packed import Packed, Readout, Source, place
from jaxmix.converters.checkpoints.slicing import read_slice

__all__ = ["power_of_two", "read"]

_BLOCKS, _SCALES = "_blocks", "_scales"
# What a code of 4 bits stands for: a sign, two bits of exponent, one of mantissa.
_E2M1 = np.array([0.0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
_PAIRS = _E2M1[np.stack([np.arange(256) & 15, np.arange(256) >> 4], axis=-1)]


@dataclass(frozen=True)
class Experts(Packed):
    """The weights of experts, (experts, in, out).

    Args:
        scale: the exponents.
    """

    scale: Stored

    def rows(self, part: slice) -> np.ndarray:
        """See `Packed`: a run of experts."""
        # Both numbers of a byte at once.
        values = _PAIRS[read_slice(self.main, (part,))]
        values = values.reshape(*values.shape[:-2], 2 * values.shape[-2])
        with np.errstate(over="ignore"):
            values *= power_of_two(read_slice(self.scale, (part,)))[..., None]
        experts, out, groups, size = values.shape
        return np.ascontiguousarray(values.reshape(experts, out, groups * size).swapaxes(1, 2))


def power_of_two(exponents: np.ndarray) -> np.ndarray:
    """``2 ** (exponent − 127)`` in float32, of exponents in bytes; 255 is no number."""
    with np.errstate(over="ignore"):
        powers = np.ldexp(np.float32(1), exponents.astype(np.int32) - 127)
    return np.where(exponents == 255, np.float32(np.nan), powers)


def read(source: Source, readout: Readout) -> None:
    """Adds the experts that are packed in MXFP4.

    Args:
        source: the checkpoint.
        readout: where they are added.
    """
    for name, tensor in source.tensors.items():
        weight = name.removesuffix(_BLOCKS)
        if weight != name and tensor.dtype == "U8":
            scale = source.tensors.get(weight + _SCALES)
            readout.add(_experts(weight, tensor, scale), name, weight + _SCALES)


def _experts(name: str, blocks: Stored, scale: Stored | None) -> Packed | str:
    """The weights of experts, or what is wrong with them."""
    if scale is None:
        return f"{blocks.name} {blocks.shape}: {name}{_SCALES} is missing"
    if len(blocks.shape) != 4 or scale.dtype != "U8" or scale.shape != blocks.shape[:-1]:
        return (
            f"{blocks.name} {blocks.shape}: {scale.name} is {scale.dtype} {scale.shape}, expected "
            "blocks (experts, out, groups, bytes) and scales U8 (experts, out, groups)"
        )
    experts, out, groups, size = blocks.shape
    shape = (experts, groups * size * 2, out)
    return Experts(*place(name, shape, blocks), blocks, "MXFP4", scale)
