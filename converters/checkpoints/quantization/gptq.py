"""GPTQ: integers of 2, 3, 4 or 8 bits, with a scale and a zero point for each group of inputs.

``qweight`` (in · bits / 32, out) holds the codes along the inputs, ``qzeros`` (groups, out · bits /
32) the zero points along the outputs, each with the lowest bits first; ``scales`` is (groups, out),
and ``g_idx`` (in,) gives the group of each input. W[o, i] = scales[g, o] · (code[i, o] −
zero[g, o]), rounded to the scales' dtype.

Files of version 1 hold each zero point minus 1. Like GPTQModel, with which transformers loads
them, this reader adds the 1 to whole words, which also restores bits changed by a borrow.
"""

from dataclasses import dataclass

import numpy as np

from jaxmix.converters.checkpoints.huggingface import FLOATS, Stored
from jaxmix.converters.checkpoints.quantization.packed import (
    Packed,
    Problem,
    Readout,
    Source,
    add_modules,
    stored_fields,
    unpack_bits,
)
from jaxmix.converters.checkpoints.slicing import read_slice
from jaxmix.errors import CheckpointError

__all__ = ["apply_scale", "read"]

_WORD = 32
_BITS = (2, 3, 4, 8)
# Whether the zero points of a checkpoint format are stored minus 1.
_FORMATS = {"gptq": True, "gptq_v2": False}
_PARTS = ("qweight", "qzeros", "scales", "g_idx")


@dataclass(frozen=True)
class Grouped(Packed):
    """A weight in GPTQ's format.

    Args:
        zeros: The zero points.
        scale: The scales.
        groups: The group of each input; None if groups are consecutive inputs.
        group_size: The inputs of a group, if groups are consecutive inputs.
        bits: The bits of a code.
        is_less: Whether the zero points are stored minus 1.
    """

    zeros: Stored
    scale: Stored
    groups: Stored | None
    group_size: int
    bits: int
    is_less: bool

    def rows(self, part: slice) -> np.ndarray:
        """See `Packed`."""
        packed = read_slice(self.main, (slice(None), part))
        codes = unpack_bits(packed.T, self.bits)
        zeros = self._zeros(part)
        group = np.arange(self.shape[1]) // self.group_size
        if self.groups is not None:
            group = read_slice(self.groups)
            count = self.scale.shape[0]
            if group.size and not (0 <= group.min() and group.max() < count):
                raise CheckpointError(
                    f"{self.groups.name} in {self.groups.file} has groups from {group.min()} to "
                    f"{group.max()}, expected 0 to {count - 1}. Download or save it again."
                )
        scale = read_slice(self.scale, (slice(None), part)).T
        return apply_scale(codes.astype(np.int16) - zeros.T[:, group], scale[:, group])

    def _zeros(self, part: slice) -> np.ndarray:
        """Returns the zero points (groups, outputs) of a run of outputs."""
        # Every 32 of them end at the end of a word, for any number of bits.
        first, last = part.start // _WORD, -(-part.stop // _WORD)
        packed = read_slice(
            self.zeros, (slice(None), slice(first * self.bits, last * self.bits))
        ).view(np.uint32)
        if self.is_less and self.bits != 3:
            packed = packed + np.uint32(sum(1 << k for k in range(0, _WORD, self.bits)))
        zeros = unpack_bits(packed, self.bits).astype(np.int16)
        if self.is_less and self.bits == 3:
            zeros = (zeros + 1) & 7
        start = part.start - first * _WORD
        return zeros[:, start : start + part.stop - part.start]


def apply_scale(steps: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Returns ``scale · steps`` in float32, rounded to the scale's dtype, as in the libraries.

    Args:
        steps: Codes minus their zero points, integers of up to 9 bits.
        scale: The scales, of the same shape.
    """
    # A product of so few bits is exact in float32.
    product = steps.astype(np.float32) * scale.astype(np.float32)
    return product.astype(scale.dtype).astype(np.float32)


def read(source: Source, readout: Readout) -> None:
    """Adds the weights that GPTQ packed.

    Args:
        source: The checkpoint.
        readout: Collects the weights.
    """
    add_modules(source, readout, _PARTS, _grouped)


def _grouped(module: str, source: Source) -> Packed | Problem:
    """Reads a module's weight, or returns the problem with it."""
    settings, codes = source.settings, source.tensors[f"{module}.{_PARTS[0]}"]
    zeros, scale, groups = (source.tensors.get(f"{module}.{part}") for part in _PARTS[1:])
    version = str(settings.get("checkpoint_format") or settings.get("format") or "gptq").lower()
    if version not in _FORMATS:
        expected = " or ".join(_FORMATS)
        return Problem(f"{module}: checkpoint_format is {version!r}, expected {expected}")
    if zeros is None or scale is None:
        return Problem(f"{module}: {module}.{'scales' if zeros else 'qzeros'} is missing")
    wrong = [
        f"{tensor.name} is {tensor.dtype} {tensor.shape}"
        for tensor, kinds in ((codes, {"I32"}), (zeros, {"I32"}), (scale, FLOATS))
        if tensor.dtype not in kinds or len(tensor.shape) != 2 or not all(tensor.shape)
    ]
    if wrong:
        return Problem(f"{module}: {', '.join(wrong)}; expected matrices of I32 and of floats")
    out, count = codes.shape[1], scale.shape[0]
    bits = zeros.shape[1] * _WORD // out
    if bits not in _BITS or zeros.shape != (count, -(-out * bits // _WORD)):
        shapes = _shapes(codes, zeros, scale)
        return Problem(f"{module}: {shapes} are not codes of 2, 3, 4 or 8 bits")
    inputs = codes.shape[0] * _WORD // bits
    if scale.shape != (count, out) or codes.shape[0] * _WORD % bits:
        return Problem(f"{module}: {_shapes(codes, zeros, scale)} do not fit each other")
    if groups is not None and (groups.shape != (inputs,) or groups.dtype not in ("I32", "I64")):
        return Problem(f"{groups.name} is {groups.dtype} {groups.shape}, expected I32 ({inputs},)")
    size = settings.get("group_size")
    if type(size) is not int or size < 1 or -(-inputs // size) != count:
        size = -(-inputs // count)
    if groups is None and -(-inputs // size) != count:
        return Problem(f"{module}: {_shapes(codes, zeros, scale)} do not fit each other")
    fields = stored_fields(f"{module}.weight", (out, inputs), codes)
    kind = f"GPTQ, {bits} bits"
    return Grouped(*fields, codes, kind, zeros, scale, groups, size, bits, _FORMATS[version])


def _shapes(*tensors: Stored) -> str:
    """Lists tensors with their shapes, for messages."""
    return ", ".join(f"{tensor.name.rpartition('.')[2]} {tensor.shape}" for tensor in tensors)
