"""GPTQ: integers of 2, 3, 4 or 8 bits, with a scale and a zero point for each group of inputs.

``qweight`` (in · bits / 32, out) holds the codes along the inputs, ``qzeros`` (groups, out · bits /
32) the zero points along the outputs, each with the lowest bits first; ``scales`` is (groups, out),
and ``g_idx`` (in,) says which group an input is in. W[o, i] = scales[g, o] · (code[i, o] −
zero[g, o]), rounded to the scales' dtype.

The files of version 1 hold each zero point less 1. Like GPTQModel, which transformers loads them
with, this adds the 1 to whole words; so what a borrow changed is right again.
"""

from dataclasses import dataclass

import numpy as np

from jaxmix.converters.checkpoints.huggingface import FLOATS, Stored
from jaxmix.converters.checkpoints.quantization.packed import (
    Packed,
    Readout,
    Source,
    add_modules,
    fields,
    place,
)
from jaxmix.converters.checkpoints.slicing import read_slice
from jaxmix.errors import CheckpointError

__all__ = ["read", "scaled"]

_WORD = 32
_BITS = (2, 3, 4, 8)
# Whether the zero points of a checkpoint format are stored less 1.
_FORMATS = {"gptq": True, "gptq_v2": False}
_PARTS = ("qweight", "qzeros", "scales", "g_idx")


@dataclass(frozen=True)
class Grouped(Packed):
    """A weight in GPTQ's form.

    Args:
        zeros: the zero points.
        scale: the scales.
        groups: the group of each input; None if they follow each other.
        run: how many inputs a group has, where they follow each other.
        bits: how many bits a code has.
        is_less: whether the zero points are stored less 1.
    """

    zeros: Stored
    scale: Stored
    groups: Stored | None
    run: int
    bits: int
    is_less: bool

    def rows(self, part: slice) -> np.ndarray:
        """See `Packed`."""
        words = read_slice(self.main, (slice(None), part))
        codes = fields(words.T, self.bits)
        zeros = self._zeros(part)
        group = np.arange(self.shape[1]) // self.run
        if self.groups is not None:
            group = read_slice(self.groups)
            count = self.scale.shape[0]
            if group.size and not (0 <= group.min() and group.max() < count):
                raise CheckpointError(
                    f"{self.groups.name} in {self.groups.file} names groups from {group.min()} to "
                    f"{group.max()}, expected 0 to {count - 1}. Download or save it again."
                )
        scale = read_slice(self.scale, (slice(None), part)).T
        return scaled(codes.astype(np.int16) - zeros.T[:, group], scale[:, group])

    def _zeros(self, part: slice) -> np.ndarray:
        """The zero points (groups, outputs) of a run of outputs."""
        # 32 of them end at the end of a word, whatever their bits.
        first, last = part.start // _WORD, -(-part.stop // _WORD)
        words = read_slice(
            self.zeros, (slice(None), slice(first * self.bits, last * self.bits))
        ).view(np.uint32)
        if self.is_less and self.bits != 3:
            words = words + np.uint32(sum(1 << k for k in range(0, _WORD, self.bits)))
        zeros = fields(words, self.bits).astype(np.int16)
        if self.is_less and self.bits == 3:
            zeros = (zeros + 1) & 7
        start = part.start - first * _WORD
        return zeros[:, start : start + part.stop - part.start]


def scaled(steps: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """``scale · steps`` in float32, rounded to the scale's dtype, in which libraries compute it.

    Args:
        steps: codes less their zero points, integers of up to 9 bits.
        scale: the scales, of the same shape.
    """
    # A product of so few bits is exact in float32.
    product = steps.astype(np.float32) * scale.astype(np.float32)
    return product.astype(scale.dtype).astype(np.float32)


def read(source: Source, readout: Readout) -> None:
    """Adds the weights that GPTQ packed.

    Args:
        source: the checkpoint.
        readout: where they are added.
    """
    add_modules(source, readout, _PARTS, _grouped)


def _grouped(module: str, source: Source) -> Packed | str:
    """A module's weight, or what is wrong with it."""
    settings, codes = source.settings, source.tensors[f"{module}.{_PARTS[0]}"]
    zeros, scale, groups = (source.tensors.get(f"{module}.{part}") for part in _PARTS[1:])
    told = str(settings.get("checkpoint_format") or settings.get("format") or "gptq").lower()
    if told not in _FORMATS:
        return f"{module}: checkpoint_format is {told!r}, expected {' or '.join(_FORMATS)}"
    if zeros is None or scale is None:
        return f"{module}: {module}.{'scales' if zeros else 'qzeros'} is missing"
    wrong = [
        f"{tensor.name} is {tensor.dtype} {tensor.shape}"
        for tensor, kinds in ((codes, {"I32"}), (zeros, {"I32"}), (scale, FLOATS))
        if tensor.dtype not in kinds or len(tensor.shape) != 2 or not all(tensor.shape)
    ]
    if wrong:
        return f"{module}: {', '.join(wrong)}; expected matrices of I32 and of floats"
    out, count = codes.shape[1], scale.shape[0]
    bits = zeros.shape[1] * _WORD // out
    if bits not in _BITS or zeros.shape != (count, -(-out * bits // _WORD)):
        return f"{module}: {_shapes(codes, zeros, scale)} are not codes of 2, 3, 4 or 8 bits"
    inputs = codes.shape[0] * _WORD // bits
    if scale.shape != (count, out) or codes.shape[0] * _WORD % bits:
        return f"{module}: {_shapes(codes, zeros, scale)} do not fit each other"
    if groups is not None and (groups.shape != (inputs,) or groups.dtype not in ("I32", "I64")):
        return f"{groups.name} is {groups.dtype} {groups.shape}, expected I32 ({inputs},)"
    run = settings.get("group_size")
    if type(run) is not int or run < 1 or -(-inputs // run) != count:
        run = -(-inputs // count)
    if groups is None and -(-inputs // run) != count:
        return f"{module}: {_shapes(codes, zeros, scale)} do not fit each other"
    where = place(f"{module}.weight", (out, inputs), codes)
    kind = f"GPTQ, {bits} bits"
    return Grouped(*where, codes, kind, zeros, scale, groups, run, bits, _FORMATS[told])


def _shapes(*tensors: Stored) -> str:
    """Tensors with their shapes, for messages."""
    return ", ".join(f"{tensor.name.rpartition('.')[2]} {tensor.shape}" for tensor in tensors)
