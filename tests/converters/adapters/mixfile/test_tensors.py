"""The file of tensors next to mix.json."""

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from jaxmix.converters.adapters.mixfile.tensors import (
    count_infinite,
    digest,
    read,
    tensor_keys,
    write,
)
from jaxmix.errors import AdapterError, CheckpointError

from ..peft.folders import packed
from .saved import A, refused, tensors


def test_damaged_tensors_file_is_refused(folder: Path) -> None:
    """A truncated, extended or empty file and a folder are refused."""
    path = folder / "mix.safetensors"
    data = path.read_bytes()
    for damaged in (data[:-1], data[:20], b"", data + b"x"):
        path.write_bytes(damaged)
        message = refused(CheckpointError, folder)
        assert message.startswith(f"{path} is not a complete safetensors file: ")
        assert message.endswith(
            " Expected the file that jaxmix wrote; copy, download or save it again."
        )
    path.unlink()
    path.mkdir()
    message = refused(CheckpointError, folder)
    assert message.startswith(f"{path} is a folder, expected a regular file.")


def test_unsupported_dtypes_are_listed(folder: Path) -> None:
    """Tensors of unsupported dtypes are listed before any is read."""
    path = folder / "mix.safetensors"
    path.write_bytes(packed({**tensors(folder), "0/a/a": A.astype(ml_dtypes.float8_e4m3fn)}))
    assert refused(CheckpointError, folder) == (
        f"{path}: tensors of a dtype that updates can't have:\n  0/a/a: "
        f"F8_E4M3\nExpected one of F64, F32, F16, BF16, I64, I32, I16, I8, U64, U32, "
        f"U16, U8, BOOL, C64. Save the mix again."
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.float64])
def test_non_finite_tensors_are_refused(dtype: Any, folder: Path) -> None:
    """NaN and infinity are refused, as in every adapter file."""
    factor = A.astype(dtype)
    factor[0, :2] = np.nan, np.inf
    path = folder / "mix.safetensors"
    path.write_bytes(packed({**tensors(folder), "0/a/a": factor}))
    assert refused(AdapterError, folder) == (
        f"{path}: numbers that are NaN or infinite in:\n  0/a/a: 2 of 8\nExpected finite factors, "
        "as jaxmix writes them."
    )


def test_arrays_in_any_order_are_read_back_bit_for_bit(tmp_path: Path) -> None:
    """Wide dtypes come first, so each array starts at a multiple of its item's size."""
    arrays: dict[str, Any] = {
        "a/bool": np.array([True, False, True]),
        "half": A.astype(ml_dtypes.bfloat16),
        "ä/turned": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "number": np.float64(-0.0),
        "none": np.zeros((0, 3), np.int8),
    }
    path = tmp_path / "x.safetensors"
    write(path, arrays)
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    for name, array in arrays.items():
        assert (8 + length + header[name]["data_offsets"][0]) % array.dtype.itemsize == 0
    assert tensor_keys(path) == {name: header[name]["dtype"] for name in arrays}
    found = read(path, arrays)
    for name, array in arrays.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tobytes() == array.tobytes()
        assert digest(found[name]) == digest(array)


def test_only_floats_can_be_infinite() -> None:
    """Integers have no such numbers; complex ones have them in either part."""
    numbers = np.array([np.nan, np.inf, -np.inf, 3.0])
    assert count_infinite(numbers) == 3
    assert count_infinite(numbers.astype(ml_dtypes.bfloat16)) == 3
    assert count_infinite(np.array([complex(1, np.inf), 1], np.complex64)) == 1
    assert count_infinite(np.arange(3)) == count_infinite(np.ones(3, bool)) == 0
