"""mix.safetensors: arrays written one by one, so that no second copy of them all is held."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from jaxmix.errors import AdapterError, CheckpointError, listing
from jaxmix.untrusted.files import check_on_disk, check_regular, header_problem

__all__ = ["DTYPES", "digest", "infinite", "read", "tensor_keys", "write"]

# safetensors' names.
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


def _bytes(array: Any) -> memoryview:
    """The bytes of an array, row by row; not copied where they lie so already."""
    raw: Any = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return memoryview(raw)


def digest(array: Any) -> str:
    """SHA-256 of an array's bytes.

    Args:
        array: NumPy's or JAX's, (n, …).

    Returns:
        64 hexadecimal digits.
    """
    return hashlib.sha256(_bytes(array)).hexdigest()


def infinite(array: Any) -> int:
    """How many numbers of an array are NaN or infinite."""
    if np.dtype(array.dtype).kind in "iub":
        return 0
    return array.size - int(np.isfinite(np.asarray(array)).sum())


def write(path: Path, arrays: Mapping[str, Any]) -> None:
    """Writes a safetensors file: wide dtypes first, so that each tensor is aligned.

    Args:
        path: the file.
        arrays: by key, of a dtype in `DTYPES`.
    """
    order = sorted(arrays, key=lambda key: -arrays[key].dtype.itemsize)
    header: dict[str, Any] = {"__metadata__": {"format": "jaxmix"}}
    end = 0
    for key in order:
        array = arrays[key]
        begin, end = end, end + array.nbytes
        name = DTYPES[np.dtype(array.dtype)]
        told = {"dtype": name, "shape": list(array.shape), "data_offsets": [begin, end]}
        header[key] = told
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for key in order:
            file.write(_bytes(arrays[key]))


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A safetensors file; what is wrong with it in our words."""
    try:
        check_regular(path)
        check_on_disk(path)
        with safe_open(path, framework="numpy") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is no whole safetensors file: {header_problem(path) or f'{error}.'} Expected "
            "the file that jaxmix.save wrote; copy, download or save it again."
        ) from error


def tensor_keys(path: Path) -> dict[str, str]:
    """The keys of a file and safetensors' names of their dtypes; nothing where there is no file.

    Args:
        path: the file.

    Returns:
        ``{key: dtype}``.

    Raises:
        CheckpointError: if it is damaged, can't be read, or holds dtypes that `write` does not.
    """
    if not path.exists():
        return {}
    with _opened(path) as file:
        dtypes = {key: str(file.get_slice(key).get_dtype()) for key in file.keys()}
    known = set(DTYPES.values())
    if wrong := [f"{key}: {dtype}" for key, dtype in dtypes.items() if dtype not in known]:
        raise CheckpointError(
            f"{path}: tensors of a dtype that no update has:{listing(wrong)}\nExpected one of "
            f"{', '.join(DTYPES.values())}. Save the mix again."
        )
    return dtypes


def read(path: Path, keys: Iterable[str]) -> dict[str, np.ndarray]:
    """Reads tensors; each is copied once.

    Args:
        path: the file.
        keys: those to read, which it has.

    Returns:
        ``{key: array}``, bfloat16 as ml_dtypes'.

    Raises:
        CheckpointError: if the file is damaged.
        AdapterError: if a number in it is not finite.
    """
    keys = list(keys)
    if not keys:
        return {}
    with _opened(path) as file:
        arrays = {key: file.get_tensor(key) for key in keys}
    if bad := [f"{key}: {infinite(x)} of {x.size}" for key, x in arrays.items() if infinite(x)]:
        raise AdapterError(
            f"{path}: numbers that are NaN or infinite in:{listing(bad)}\nExpected finite factors, "
            "as jaxmix.save writes them."
        )
    return arrays
