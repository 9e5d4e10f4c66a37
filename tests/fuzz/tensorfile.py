"""An independent reader and writer of safetensors, and of the numbers in them."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["SIZES", "BadFileError", "Tensor", "encoded", "pack", "split", "unpack"]

# Bytes per number, by safetensors' names of the dtypes.
SIZES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip
_PLAIN = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "<i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "<u1", "BOOL": "<u1",
}  # fmt: skip
_MOST = 100_000_000


class BadFileError(Exception):
    """An input has no right answer, so it must be refused."""


@dataclass(frozen=True)
class Tensor:
    """A tensor as a file stores it.

    Args:
        dtype: The dtype's name in safetensors.
        shape: The sizes of its axes.
        data: Its bytes, little-endian, in C order.
    """

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    @property
    def is_float(self) -> bool:
        """Whether it holds floats of 16 bits or more."""
        return self.dtype in ("F64", "F32", "F16", "BF16")

    @property
    def numbers(self) -> np.ndarray:
        """Returns its numbers in float64; integers as int64."""
        with np.errstate(invalid="ignore"):
            return _decoded(self.dtype, self.data).reshape(self.shape)


def encoded(numbers: Any, dtype: str = "F32") -> Tensor:
    """Returns a tensor of numbers, rounded to nearest even."""
    array = np.asarray(numbers)
    with np.errstate(all="ignore"):
        if dtype == "BF16":
            bits = np.atleast_1d(array.astype("<f4")).view("<u4").astype(np.uint64)
            rounded = (bits + 0x7FFF + ((bits >> np.uint64(16)) & np.uint64(1))) >> np.uint64(16)
            nan = np.isnan(np.atleast_1d(array.astype("<f4")))
            data = np.where(nan, 0x7FC0, rounded).astype("<u2").tobytes()
        elif dtype in ("F8_E4M3", "F8_E5M2"):
            data = _nearest(array.reshape(-1), _decoded(dtype, bytes(range(256)))).tobytes()
        elif dtype == "BOOL":
            data = (array != 0).astype("<u1").tobytes()
        else:
            data = np.ascontiguousarray(array).astype(_PLAIN[dtype]).tobytes()
    return Tensor(dtype, array.shape, data)


def pack(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None) -> bytes:
    """Returns a file with these tensors, in this order."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    start = 0
    for name, tensor in tensors.items():
        end = start + len(tensor.data)
        header[name] = {
            "dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [start, end],
        }  # fmt: skip
        start = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + b"".join(t.data for t in tensors.values())


def split(data: bytes) -> tuple[bytes, bytes]:
    """Returns a file's header, without its length, and the remaining bytes.

    Raises:
        BadFileError: If it ends too early.
    """
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(_MOST, len(data) - 8):
        raise BadFileError("the file ends within its header")
    return data[8 : 8 + length], data[8 + length :]


def unpack(data: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns the tensors and metadata of a file, checked by the format's description.

    Raises:
        BadFileError: If it is no valid file.

    Source: https://github.com/huggingface/safetensors, Format.
    """
    text, rest = split(data)
    try:
        header = json.loads(text.decode("utf-8"), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise BadFileError(f"the header is no JSON: {error}") from error
    if not isinstance(header, dict):
        raise BadFileError("the header is no object")
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(x, str) for x in metadata.values()):
        raise BadFileError("the metadata is not made of strings")
    tensors, places = {}, []
    for name, entry in header.items():
        dtype, shape, (start, end) = _entry(entry)
        size = math.prod(shape) * SIZES[dtype]
        if start > end or end > len(rest) or end - start != size:
            raise BadFileError(f"{name}: {dtype} {shape} does not fit bytes {start} to {end}")
        tensors[name] = Tensor(dtype, shape, rest[start:end])
        places.append((start, end))
    end = 0
    for place in sorted(places):
        if place[0] != end:
            raise BadFileError("tensors overlap, or leave holes")
        end = place[1]
    if end != len(rest):
        raise BadFileError("bytes are left over")
    return tensors, metadata


def _entry(entry: Any) -> tuple[str, tuple[int, ...], tuple[int, int]]:
    """Returns the dtype, shape and offsets of one tensor."""
    if not isinstance(entry, dict):
        raise BadFileError("an entry of the header is no object")
    dtype, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in SIZES:
        raise BadFileError(f"dtype {dtype!r}")
    if not _are_counts(shape) or not _are_counts(offsets) or len(offsets) != 2:
        raise BadFileError(f"shape {shape!r}, offsets {offsets!r}")
    return dtype, tuple(shape), tuple(offsets)


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(x) is int and 0 <= x < 2**64 for x in values)


def _refuse(text: str) -> Any:
    raise ValueError(f"{text} is no number")


def _decoded(dtype: str, data: bytes) -> np.ndarray:
    """Returns numbers from bytes; 8-bit formats by their definition."""
    if dtype == "BF16":
        return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4").astype(np.float64)
    if dtype in _PLAIN:
        values = np.frombuffer(data, _PLAIN[dtype])
        return values.astype(np.float64 if dtype[0] == "F" else np.int64)
    bits = np.frombuffer(data, np.uint8).astype(np.int64)
    if dtype == "F8_E8M0":
        return np.where(bits == 255, np.nan, np.ldexp(1.0, bits - 127))
    mantissa_bits, bias = (3, 7) if dtype == "F8_E4M3" else (2, 15)
    sign = np.where(bits >> 7, -1.0, 1.0)
    exponent = (bits & 0x7F) >> mantissa_bits
    mantissa = bits & ((1 << mantissa_bits) - 1)
    fraction = mantissa / (1 << mantissa_bits)
    value = np.where(
        exponent == 0,
        np.ldexp(fraction, 1 - bias),
        np.ldexp(1 + fraction, exponent - bias),
    )
    if dtype == "F8_E4M3":  # one NaN, no infinity
        return sign * np.where((bits & 0x7F) == 0x7F, np.nan, value)
    special = np.where(mantissa == 0, np.inf, np.nan)
    return sign * np.where(exponent == 31, special, value)


def _nearest(numbers: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Returns the codes of the nearest finite values of a table, good enough to make files."""
    finite = np.where(np.isfinite(table), table, 1e300)
    return np.abs(numbers[:, None] - finite[None]).argmin(1).astype(np.uint8)
