"""AWQ: integers of 4 bits, with a scale and a zero point for each group of inputs.

``qweight`` (in, out / 8), ``qzeros`` (groups, out / 8) and ``scales`` (groups, out): both kinds of
integers lie along the outputs, eight a word in an order of their own. W[o, i] = scales[g, o] ·
(code[i, o] − zero[g, o]), rounded to the scales' dtype.
"""

from dataclasses import dataclass

import numpy as np

from jaxmix.converters.checkpoints.huggingface import FLOATS, Stored
from jaxmix.converters.checkpoints.quantization.gptq import scaled
from jaxmix.converters.checkpoints.quantization.packed import (
    Packed,
    Readout,
    Source,
    add_modules,
    fields,
    place,
)
from jaxmix.converters.checkpoints.slicing import read_slice

__all__ = ["read"]

_PARTS = ("qweight", "qzeros", "scales")
# Which of a word's eight codes, the lowest bits first, belongs to which output.
_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
# The versions whose files are alike; others of AWQ's lie differently.
_VERSIONS = ("gemm", "exllama", "ipex")


@dataclass(frozen=True)
class Interleaved(Packed):
    """A weight in AWQ's form.

    Args:
        zeros: the zero points.
        scale: the scales.
    """

    zeros: Stored
    scale: Stored

    def rows(self, part: slice) -> np.ndarray:
        """See `Packed`."""
        size = self.shape[1] // self.scale.shape[0]
        codes = _unpacked(self.main, part)
        zeros = np.repeat(_unpacked(self.zeros, part), size, axis=0)
        scale = np.repeat(read_slice(self.scale, (slice(None), part)), size, axis=0)
        return np.ascontiguousarray(scaled(codes - zeros, scale).T)


def _unpacked(tensor: Stored, part: slice) -> np.ndarray:
    """The integers of a run of outputs (rows, outputs)."""
    first, last = part.start // 8, -(-part.stop // 8)
    words = read_slice(tensor, (slice(None), slice(first, last)))
    found = fields(words, 4).reshape(*words.shape, 8)[..., _ORDER].reshape(words.shape[0], -1)
    start = part.start - first * 8
    return found[:, start : start + part.stop - part.start].astype(np.int16)


def read(source: Source, readout: Readout) -> None:
    """Adds the weights that AWQ packed.

    Args:
        source: the checkpoint.
        readout: where they are added.
    """
    add_modules(source, readout, _PARTS, _interleaved)


def _interleaved(module: str, source: Source) -> Packed | str:
    """A module's weight, or what is wrong with it."""
    settings, codes = source.settings, source.tensors[f"{module}.{_PARTS[0]}"]
    zeros, scale = (source.tensors.get(f"{module}.{part}") for part in _PARTS[1:])
    version = str(settings.get("version") or settings.get("format") or "gemm").lower()
    if version not in _VERSIONS or settings.get("backend") == "llm-awq":
        what = version if version not in _VERSIONS else "llm-awq"
        return f"{module}: AWQ's version is {what!r}, expected gemm"
    bits = settings.get("bits", settings.get("w_bit", 4))
    if bits != 4:
        return f"{module}: AWQ of {bits!r} bits, expected 4"
    if zeros is None or scale is None:
        return f"{module}: {module}.{'scales' if zeros else 'qzeros'} is missing"
    shapes = [tensor.shape for tensor in (codes, zeros, scale)]
    kinds = zip((codes, zeros, scale), ({"I32"}, {"I32"}, FLOATS), strict=True)
    fits = all(len(shape) == 2 and all(shape) for shape in shapes)
    fits = fits and all(tensor.dtype in kind for tensor, kind in kinds)
    if fits:
        (inputs, words), (count, _), _ = shapes
        fits = shapes[1:] == [(count, words), (count, words * 8)] and inputs % count == 0
    if not fits:
        told = ", ".join(f"{t.name} is {t.dtype} {t.shape}" for t in (codes, zeros, scale))
        return f"{module}: {told}; expected I32 (in, out/8), I32 (groups, out/8), F16 (groups, out)"
    where = place(f"{module}.weight", (codes.shape[1] * 8, codes.shape[0]), codes)
    return Interleaved(*where, codes, "AWQ, 4 bits", zeros, scale)
