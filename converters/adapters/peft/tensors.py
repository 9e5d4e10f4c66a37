"""An adapter's file of tensors, safetensors or torch's: read and checked."""

from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from jaxmix.converters.files.torch_files import is_torch_file, torch_tensors
from jaxmix.errors import AdapterError, CheckpointError, listing
from jaxmix.untrusted.files import check_on_disk, check_regular, header_problem

__all__ = ["FLOATS", "read_tensors"]

FLOATS = (np.float64, np.float32, np.float16, ml_dtypes.bfloat16)
# By safetensors' names; the integers are SHiRA's positions.
_DTYPES = ("F64", "F32", "F16", "BF16", "I32", "I64")
# Where a type says so: VB-LoRA's numbers of vectors.
_SHORT = ("U8", "I16")
# What a file that is no safetensors may begin with; a safetensors has a brace after eight bytes.
_BEGINNINGS = {
    b"version https://git-lfs": "a Git LFS pointer: run `git lfs pull` in its repository",
    b"PK\x03\x04": "a zip, as torch.save writes it; a pickle is in it, and jaxmix opens none",
    b"\x80": "a pickle under another name, and jaxmix opens none",
    b"<": "a web page: the download failed",
}


def read_tensors(path: Path, integers: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    """Reads a file of tensors: safetensors without torch, or what ``torch.save`` wrote with it.

    Args:
        path: The file. Safetensors are memory-mapped, and each tensor is copied once.
        integers: The ends of keys that may hold integers of few bits.

    Returns:
        ``{key: array}`` in the file's dtypes; bfloat16 is ml_dtypes'.

    Raises:
        CheckpointError: If it is missing, damaged, empty, or of a dtype that no factor has.
        AdapterError: If a number in it is not finite.
    """
    tensors, wrong = (_from_torch if is_torch_file(path) else _from_safetensors)(path, integers)
    if wrong:
        raise CheckpointError(
            f"{path}: tensors of a dtype that factors can't have, expected float64, float32, "
            f"float16 or bfloat16:{listing(wrong)}\nSave the adapter unquantized."
        )
    if not tensors:
        raise CheckpointError(
            f"{path} holds no tensors, expected an adapter's factors. Was it saved by one rank "
            "only?"
        )
    if bad := [f"{key}: {_infinite(x)} of {x.size}" for key, x in tensors.items() if _infinite(x)]:
        raise AdapterError(
            f"{path}: numbers that are NaN or infinite in:{listing(bad)}\n"
            "Expected finite factors. Did the training diverge? Take an earlier checkpoint."
        )
    return tensors


def _from_safetensors(
    path: Path, integers: tuple[str, ...]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """A safetensors file's tensors, and those of other dtypes."""
    tensors: dict[str, np.ndarray] = {}
    wrong: list[str] = []
    try:
        check_regular(path)
        check_on_disk(path)
        with safe_open(path, framework="numpy") as file:
            for key in file.keys():
                dtype = file.get_slice(key).get_dtype()
                if dtype in _DTYPES or (dtype in _SHORT and key.endswith(integers)):
                    tensors[key] = file.get_tensor(key)
                else:
                    wrong.append(f"{key}: {dtype}")
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist. Give the path of a file.") from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} {_damage(path, error)}") from error
    return tensors, wrong


def _from_torch(path: Path, integers: tuple[str, ...]) -> tuple[dict[str, np.ndarray], list[str]]:
    """The tensors of a file that torch wrote, and those of other dtypes."""
    tensors = torch_tensors(path)
    wrong = [
        f"{key}: {x.dtype}"
        for key, x in tensors.items()
        if x.dtype not in (*FLOATS, np.int32, np.int64)
        and not (x.dtype in (np.uint8, np.int16) and key.endswith(integers))
    ]
    return tensors, wrong


def _infinite(array: np.ndarray) -> int:
    """How many of the numbers are not finite."""
    return 0 if array.dtype.kind in "iu" else array.size - int(np.isfinite(array).sum())


def _damage(path: Path, error: Exception) -> str:
    """What is wrong with a file that safetensors can't open."""
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as reason:
        return f"can't be read: {reason.strerror}. Expected a file that you may read."
    found = header_problem(path) or f"{error}."
    if start[8:9] != b"{":
        seen = (f"it is {what}." for begin, what in _BEGINNINGS.items() if start.startswith(begin))
        found = next(seen, found)
    return (
        f"({path.stat().st_size} bytes) is no whole safetensors file: {found} "
        "Expected the file that save_pretrained wrote; download or save it again."
    )
