"""AWQ: integers of 4 bits, with a scale and a zero point for each group of inputs.

``qweight`` (in, out / 8), ``qzeros`` (groups, out / 8) and ``scales`` (groups, out): both kinds of
integers are packed along the outputs, eight to a word, in AWQ's own order. W[o, i] =
scales[g, o] · (code[i, o] − zero[g, o]), rounded to the scales' dtype.
"""

from dataclasses import dataclass

import numpy as np

from jaxmix.converters.checkpoints.huggingface import FLOATS, Stored
from jaxmix.converters.checkpoints.quantization.gptq import apply_scale
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

__all__ = ["read"]

_PARTS = ("qweight", "qzeros", "scales")
# The position within a word, lowest bits first, of the code of each of its eight outputs.
_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
# The versions that share this file format; other versions of AWQ pack differently.
_VERSIONS = ("gemm", "exllama", "ipex")


@dataclass(frozen=True)
class Interleaved(Packed):
    """A weight in AWQ's format.

    Args:
        zeros: The zero points.
        scale: The scales.
    """

    zeros: Stored
    scale: Stored

    def rows(self, part: slice) -> np.ndarray:
        """See `Packed`."""
        size = self.shape[1] // self.scale.shape[0]
        codes = _unpacked(self.main, part)
        zeros = np.repeat(_unpacked(self.zeros, part), size, axis=0)
        scale = np.repeat(read_slice(self.scale, (slice(None), part)), size, axis=0)
        return np.ascontiguousarray(apply_scale(codes - zeros, scale).T)


def _unpacked(tensor: Stored, part: slice) -> np.ndarray:
    """Returns the integers (rows, outputs) of a run of outputs."""
    first, last = part.start // 8, -(-part.stop // 8)
    packed = read_slice(tensor, (slice(None), slice(first, last)))
    integers = (
        unpack_bits(packed, 4).reshape(*packed.shape, 8)[..., _ORDER].reshape(packed.shape[0], -1)
    )
    start = part.start - first * 8
    return integers[:, start : start + part.stop - part.start].astype(np.int16)


def read(source: Source, readout: Readout) -> None:
    """Adds the weights that AWQ packed.

    Args:
        source: The checkpoint.
        readout: Collects the weights.
    """
    add_modules(source, readout, _PARTS, _interleaved)


def _interleaved(module: str, source: Source) -> Packed | Problem:
    """Reads a module's weight, or returns the problem with it."""
    settings, codes = source.settings, source.tensors[f"{module}.{_PARTS[0]}"]
    zeros, scale = (source.tensors.get(f"{module}.{part}") for part in _PARTS[1:])
    version = str(settings.get("version") or settings.get("format") or "gemm").lower()
    if version not in _VERSIONS or settings.get("backend") == "llm-awq":
        name = version if version not in _VERSIONS else "llm-awq"
        return Problem(f"{module}: the AWQ version is {name!r}, expected gemm")
    bits = settings.get("bits", settings.get("w_bit", 4))
    if bits != 4:
        return Problem(f"{module}: AWQ with {bits!r} bits, expected 4")
    if zeros is None or scale is None:
        return Problem(f"{module}: {module}.{'scales' if zeros else 'qzeros'} is missing")
    shapes = [tensor.shape for tensor in (codes, zeros, scale)]
    kinds = zip((codes, zeros, scale), ({"I32"}, {"I32"}, FLOATS), strict=True)
    fits = all(len(shape) == 2 and all(shape) for shape in shapes)
    fits = fits and all(tensor.dtype in kind for tensor, kind in kinds)
    if fits:
        (inputs, columns), (count, _), _ = shapes
        fits = shapes[1:] == [(count, columns), (count, columns * 8)] and inputs % count == 0
    if not fits:
        tensors = ", ".join(f"{t.name} is {t.dtype} {t.shape}" for t in (codes, zeros, scale))
        expected = "I32 (in, out/8), I32 (groups, out/8), F16 (groups, out)"
        return Problem(f"{module}: {tensors}; expected {expected}")
    fields = stored_fields(f"{module}.weight", (codes.shape[1] * 8, codes.shape[0]), codes)
    return Interleaved(*fields, codes, "AWQ, 4 bits", zeros, scale)
