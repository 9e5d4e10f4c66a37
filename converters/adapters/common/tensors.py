"""Reads and checks an adapter's file of tensors, a safetensors file or one of ``torch.save``."""

from pathlib import Path

import ml_dtypes
import numpy as np

from jaxmix.converters.files.torch_files import is_torch_file, torch_tensors
from jaxmix.errors import AdapterError, CheckpointError, listing
from jaxmix.untrusted.safetensors import opened_safetensors, tensor_bytes

__all__ = ["FACTOR_DTYPES", "read_tensors"]

FACTOR_DTYPES = (np.float64, np.float32, np.float16, ml_dtypes.bfloat16)
# The names of these dtypes in safetensors. The integers are SHiRA's positions.
_DTYPES = ("F64", "F32", "F16", "BF16", "I32", "I64")
# Plain casts, read as float32. Factors have no scales.
_FLOAT8 = {"F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2}
# Integers of few bits are read where a type asks for them: VB-LoRA's indices of vectors.
_SHORT = ("U8", "I16")
_ADVICE = "Expected the file that save_pretrained wrote; download or save it again."


def read_tensors(path: Path, integers: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    """Reads a file of tensors: safetensors without torch, or a file of ``torch.save`` with it.

    Args:
        path: The file. Safetensors files are memory-mapped, and each tensor is copied once.
        integers: The ends of keys that may contain integers of few bits.

    Returns:
        ``{key: array}`` in the file's dtypes, but float8 as float32; bfloat16 is that of ml_dtypes.

    Raises:
        CheckpointError: If the file is missing, damaged or empty, or a dtype is not one of factors.
        AdapterError: If a number in it is not finite.
    """
    tensors, wrong = (_read_torch if is_torch_file(path) else _read_safetensors)(path, integers)
    if wrong:
        raise CheckpointError(
            f"{path}: tensors of a dtype that factors can't have, expected float64, float32, "
            f"float16 or bfloat16:{listing(wrong)}\nSave the adapter unquantized."
        )
    if not tensors:
        raise CheckpointError(
            f"{path} contains no tensors, expected an adapter's factors. Was it saved by only one "
            "of several processes?"
        )
    counts = {key: _count_infinite(array) for key, array in tensors.items()}
    if bad := [f"{key}: {count} of {tensors[key].size}" for key, count in counts.items() if count]:
        raise AdapterError(
            f"{path}: numbers that are NaN or infinite in:{listing(bad)}\n"
            "Expected finite factors. Did the training diverge? Take an earlier checkpoint."
        )
    return tensors


def _read_safetensors(
    path: Path, integers: tuple[str, ...]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The tensors of a safetensors file, and a description of those of other dtypes."""
    tensors: dict[str, np.ndarray] = {}
    float8: dict[str, str] = {}
    wrong: list[str] = []
    with opened_safetensors(path, advice=_ADVICE, is_read_whole=True) as file:
        for key in file.keys():
            dtype = file.get_slice(key).get_dtype()
            if dtype in _DTYPES or (dtype in _SHORT and key.endswith(integers)):
                tensors[key] = file.get_tensor(key)
            elif dtype in _FLOAT8:
                float8[key] = dtype
            else:
                wrong.append(f"{key}: {dtype}")
    for key, (shape, data) in tensor_bytes(path).items() if float8 else ():
        if key in float8:
            array = np.frombuffer(data, _FLOAT8[float8[key]])
            tensors[key] = array.reshape(shape).astype(np.float32)
    return tensors, wrong


def _read_torch(path: Path, integers: tuple[str, ...]) -> tuple[dict[str, np.ndarray], list[str]]:
    """The tensors of a file of ``torch.save``, and a description of those of other dtypes."""
    tensors = torch_tensors(path)
    wrong = [
        f"{key}: {x.dtype}"
        for key, x in tensors.items()
        if x.dtype not in (*FACTOR_DTYPES, np.int32, np.int64)
        and not (x.dtype in (np.uint8, np.int16) and key.endswith(integers))
    ]
    return tensors, wrong


def _count_infinite(array: np.ndarray) -> int:
    """The number of elements that are not finite."""
    return 0 if array.dtype.kind in "iu" else array.size - int(np.isfinite(array).sum())
