"""bitsandbytes: nf4 and fp4 in blocks, with scales in float32 or quantized again; int8 by rows.

4 bits: ``weight`` holds the flattened matrix (out, in), two codes per byte, the first one in the
high bits; W = table[code] · absmax[block], rounded to the original dtype of the weight. With double
quantization absmax = nested_quant_map[code] · nested_absmax[block] + offset.

8 bits: W = weight · SCB / 127, with one SCB for each row.
"""

import math
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from jaxmix.converters.checkpoints.huggingface import FLOATS, Stored
from jaxmix.converters.checkpoints.quantization.packed import (
    Packed,
    Problem,
    Readout,
    Source,
    stored_fields,
)
from jaxmix.converters.checkpoints.slicing import read_slice
from jaxmix.untrusted.files import parse_json

__all__ = ["read"]

_STATE = ".quant_state.bitsandbytes__"
# The JSON stored with a weight has about 200 bytes.
_LARGEST_STATE = 1 << 14
_DTYPES: dict[str, Any] = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
}
# The value of each code. bitsandbytes has both tables in its kernels and ignores the file's.
_TABLES = {
    "nf4": [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ],
    "fp4": [
        sign * size
        for sign in (1, -1)
        for size in (0, 1 / 192, 2 / 3, 1, 1 / 3, 1 / 2, 1 / 6, 1 / 4)
    ],
}
_ONE_127TH = np.float32(7.874015718698502e-3)


@dataclass(frozen=True)
class Nested:
    """Scales that are themselves quantized in 8 bits.

    Args:
        absmax: The scales of the scales, in float32.
        table: The value of each code: 256 numbers.
        block: The number of scales that share a scale.
        offset: The number added to every scale.
    """

    absmax: Stored
    table: Stored
    block: int
    offset: float

    def scales(self, codes: np.ndarray, first: int) -> np.ndarray:
        """Returns the scales with these codes; ``first`` is the index of the first one."""
        blocks = np.arange(first, first + codes.size) // self.block
        part = slice(int(blocks[0]), int(blocks[-1]) + 1)
        block_scales = read_slice(self.absmax, (part,))[blocks - blocks[0]]
        return read_slice(self.table)[codes] * block_scales + np.float32(self.offset)


@dataclass(frozen=True)
class FourBits(Packed):
    """A weight of 4 bits.

    Args:
        absmax: The scale of each block, or its code.
        block: The number of weights that share a scale.
        table: The value of each code.
        rounding: The dtype to which the library rounds the weights.
        nested: How the scales are packed; None if they are not.
    """

    absmax: Stored
    block: int
    table: tuple[float, ...]
    rounding: str
    nested: Nested | None

    def rows(self, part: slice) -> np.ndarray:
        """See `Packed`."""
        width = math.prod(self.shape[1:])
        start, stop = part.start * width, part.stop * width
        shape = (part.stop - part.start, *self.shape[1:])
        if start == stop:
            return np.empty(shape, np.float32)
        data = _bytes(self.main, start // 2, -(-stop // 2))
        # Look up both numbers of a byte at once.
        table, byte = np.asarray(self.table, np.float32), np.arange(256)
        pairs = np.stack([table[byte >> 4], table[byte & 15]], axis=-1)
        values = pairs[data].reshape(-1)[start % 2 :][: stop - start]
        first, last = start // self.block, -(-stop // self.block)
        scales = read_slice(self.absmax, (slice(first, last),))
        if self.nested:
            scales = self.nested.scales(scales, first)
        lead = start - first * self.block
        values *= np.repeat(scales.astype(np.float32), self.block)[lead:][: values.size]
        return values.astype(_DTYPES[self.rounding]).astype(np.float32).reshape(shape)


@dataclass(frozen=True)
class EightBits(Packed):
    """A weight of 8 bits.

    Args:
        scale: ``SCB``, the largest absolute value of each row.
    """

    scale: Stored

    def rows(self, part: slice) -> np.ndarray:
        """See `Packed`."""
        scale = read_slice(self.scale, (part,)).astype(np.float32)
        codes = read_slice(self.main, (part,)).astype(np.float32)
        return codes * scale[:, None] * _ONE_127TH


def read(source: Source, readout: Readout) -> None:
    """Adds the weights that bitsandbytes packed.

    Args:
        source: The checkpoint.
        readout: Collects the weights.
    """
    for name, tensor in source.tensors.items():
        weight, end, kind = name.partition(_STATE)
        if end:
            parts = [f"{weight}.{part}" for part in ("absmax", "quant_map")]
            parts += [f"{weight}.{part}" for part in ("nested_absmax", "nested_quant_map")]
            readout.add(_four_bits(weight, kind, tensor, source), weight, name, *parts)
        elif tensor.dtype == "I8" and name.endswith(".weight"):
            module = name.removesuffix(".weight")
            parts = [f"{module}.{part}" for part in ("SCB", "weight_format")]
            if parts[0] in source.tensors:
                readout.add(_eight_bits(tensor, source, *parts), name, *parts)


def _four_bits(name: str, kind: str, state: Stored, source: Source) -> Packed | Problem:
    """Reads a weight of 4 bits, or returns the problem with it."""
    tensors = source.tensors
    main, absmax = tensors.get(name), tensors.get(f"{name}.absmax")
    if main is None or absmax is None:
        return Problem(f"{name}: {name + ('.absmax' if main else '')} is missing")
    if kind not in _TABLES:
        return Problem(f"{name}: its quantization is {kind}, expected nf4 or fp4")
    settings = _json(state)
    if settings is None:
        return Problem(f"{state.name} is not a JSON object of at most {_LARGEST_STATE} bytes")
    shape, block, rounding = (settings.get(key) for key in ("shape", "blocksize", "dtype"))
    if not isinstance(shape, list) or not shape or not all(map(_is_size, shape)):
        return Problem(f"{state.name} has shape {shape!r}, expected a list of sizes")
    if not _is_size(block) or rounding not in _DTYPES:
        return Problem(
            f"{state.name} has blocksize {block!r} and dtype {rounding!r}, expected a positive "
            f"integer and one of {', '.join(_DTYPES)}"
        )
    assert isinstance(block, int) and isinstance(rounding, str)
    count = math.prod(shape)
    if main.size != -(-count // 2):
        expected = f"{-(-count // 2)} for shape {tuple(shape)}"
        return Problem(f"{name} has {main.size} bytes, expected {expected}")
    blocks = -(-count // block)
    if math.prod(absmax.shape) != blocks or len(absmax.shape) != 1:
        return Problem(f"{absmax.name} has shape {absmax.shape}, expected ({blocks},)")
    nested = None
    if f"{name}.nested_absmax" in tensors:
        nested = _nested(name, blocks, settings, source)
        if isinstance(nested, Problem):
            return nested
    if absmax.dtype not in ({"U8"} if nested else FLOATS):
        expected = "U8" if nested else "F32"
        return Problem(f"{absmax.name} is {absmax.dtype}, expected {expected}")
    fields = stored_fields(name, tuple(shape), main)
    table = tuple(_TABLES[kind])
    return FourBits(
        *fields, main, f"bitsandbytes {kind}, 4 bits", absmax, block, table, rounding, nested
    )


def _nested(name: str, blocks: int, settings: dict[str, Any], source: Source) -> Nested | Problem:
    """Reads how the scales of a weight are packed, or returns the problem with them."""
    absmax = source.tensors[f"{name}.nested_absmax"]
    table = source.tensors.get(f"{name}.nested_quant_map")
    block, offset = settings.get("nested_blocksize"), settings.get("nested_offset")
    if table is None or table.shape != (256,) or table.dtype not in FLOATS:
        return Problem(f"{name}.nested_quant_map is missing, or does not have 256 floats")
    if not _is_size(block) or not isinstance(offset, int | float):
        return Problem(
            f"{name}: nested_blocksize is {block!r} and nested_offset {offset!r}, expected numbers"
        )
    assert isinstance(block, int)
    if absmax.shape != (-(-blocks // block),) or absmax.dtype not in FLOATS:
        return Problem(
            f"{absmax.name} is {absmax.dtype} {absmax.shape}, expected F32 {(-(-blocks // block),)}"
        )
    return Nested(absmax, table, block, float(offset))


def _eight_bits(
    tensor: Stored, source: Source, scale_name: str, layout_name: str
) -> Packed | Problem:
    """Reads a weight of 8 bits, or returns the problem with it."""
    scale, order = source.tensors[scale_name], source.tensors.get(layout_name)
    if len(tensor.shape) != 2 or scale.dtype not in FLOATS or scale.shape != tensor.shape[:1]:
        return Problem(
            f"{tensor.name} {tensor.shape}: {scale_name} is {scale.dtype} {scale.shape}, expected "
            "a float for each row"
        )
    if order is not None and any(_bytes(order, 0, min(order.size, 8))):
        return Problem(
            f"{tensor.name}: {layout_name} is not 0; only the layout by rows can be read"
        )
    fields = stored_fields(tensor.name, tensor.shape, tensor)
    return EightBits(*fields, tensor, "bitsandbytes, 8 bits", scale)


def _bytes(tensor: Stored, begin: int, end: int) -> np.ndarray:
    """Reads a run of a tensor's bytes, whatever its dtype."""
    start = tensor.start + begin
    flat = Stored(tensor.name, "U8", (end - begin,), tensor.file, start, end - begin)
    return read_slice(flat)


def _json(state: Stored) -> dict[str, Any] | None:
    """Returns the JSON object in a tensor of bytes; None if it is invalid or too large."""
    if state.dtype != "U8" or state.size > _LARGEST_STATE:
        return None
    try:
        data = parse_json(_bytes(state, 0, state.size).tobytes())
    except ValueError:
        return None
    return data if isinstance(data, dict) else None


def _is_size(value: object) -> bool:
    """Whether something is a positive integer within the range of file sizes."""
    return type(value) is int and 0 < value < 1 << 48
