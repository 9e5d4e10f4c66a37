"""Reads and writes mix.safetensors, one array at a time, without a second copy of all of them."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxmix.errors import AdapterError, CheckpointError, listing
from jaxmix.untrusted.safetensors import opened_safetensors

__all__ = ["DTYPES", "count_infinite", "digest", "read", "tensor_keys", "write"]

# The names of dtypes in safetensors.
DTYPES: dict[np.dtype, str] = {
    np.dtype(dtype): name
    for name, dtype in {
        "F64": np.float64,
        "F32": np.float32,
        "F16": np.float16,
        "BF16": ml_dtypes.bfloat16,
        "I64": np.int64,
        "I32": np.int32,
        "I16": np.int16,
        "I8": np.int8,
        "U64": np.uint64,
        "U32": np.uint32,
        "U16": np.uint16,
        "U8": np.uint8,
        "BOOL": np.bool_,
        "C64": np.complex64,
    }.items()
}

_ADVICE = "Expected the file that jaxmix wrote; copy, download or save it again."


def _bytes(array: Any) -> memoryview:
    """The bytes of an array in row-major order; a copy only if it is stored in another order."""
    raw: Any = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return memoryview(raw)


def digest(array: Any) -> str:
    """Returns the SHA-256 of an array's bytes.

    Args:
        array: NumPy's or JAX's, (n, …).

    Returns:
        64 hexadecimal digits.
    """
    return hashlib.sha256(_bytes(array)).hexdigest()


def count_infinite(array: Any) -> int:
    """Counts the elements of an array that are NaN or infinite."""
    if np.dtype(array.dtype).kind in "iub":
        return 0
    return array.size - int(np.isfinite(np.asarray(array)).sum())


def write(path: Path, arrays: Mapping[str, Any]) -> None:
    """Writes a safetensors file, wide dtypes first, which aligns each tensor.

    Args:
        path: The file.
        arrays: The arrays by key, of a dtype in `DTYPES`.
    """
    order = sorted(arrays, key=lambda key: -arrays[key].dtype.itemsize)
    header: dict[str, Any] = {"__metadata__": {"format": "jaxmix"}}
    end = 0
    for key in order:
        array = arrays[key]
        begin, end = end, end + array.nbytes
        name = DTYPES[np.dtype(array.dtype)]
        shape = list(array.shape)
        header[key] = {"dtype": name, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for key in order:
            file.write(_bytes(arrays[key]))


def tensor_keys(path: Path) -> dict[str, str]:
    """Returns the keys of a file with the names of their dtypes; none if there is no file.

    Args:
        path: The file.

    Returns:
        ``{key: dtype}``.

    Raises:
        CheckpointError: If it is damaged, can't be read, or has dtypes that `write` does not write.
    """
    if not path.exists():
        return {}
    with opened_safetensors(path, advice=_ADVICE, is_read_whole=True) as file:
        dtypes = {key: str(file.get_slice(key).get_dtype()) for key in file.keys()}
    known = set(DTYPES.values())
    if wrong := [f"{key}: {dtype}" for key, dtype in dtypes.items() if dtype not in known]:
        raise CheckpointError(
            f"{path}: tensors of a dtype that updates can't have:{listing(wrong)}\nExpected one of "
            f"{', '.join(DTYPES.values())}. Save the mix again."
        )
    return dtypes


def read(path: Path, keys: Iterable[str]) -> dict[str, np.ndarray]:
    """Reads tensors; each is copied once.

    Args:
        path: The file.
        keys: The keys to read, which it must have.

    Returns:
        ``{key: array}``; bfloat16 is that of ml_dtypes.

    Raises:
        CheckpointError: If the file is damaged.
        AdapterError: If a number in it is not finite.
    """
    keys = list(keys)
    if not keys:
        return {}
    with opened_safetensors(path, advice=_ADVICE, is_read_whole=True) as file:
        arrays = {key: file.get_tensor(key) for key in keys}
    if bad := [
        f"{key}: {count_infinite(x)} of {x.size}" for key, x in arrays.items() if count_infinite(x)
    ]:
        raise AdapterError(
            f"{path}: numbers that are NaN or infinite in:{listing(bad)}\nExpected finite factors, "
            "as jaxmix writes them."
        )
    return arrays
