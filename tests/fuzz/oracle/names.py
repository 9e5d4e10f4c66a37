"""JSON, shapes and names for all readers of the oracle."""

import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..tensorfile import BadFileError, Tensor, unpack

__all__ = [
    "expect",
    "floats",
    "is_number",
    "json_object",
    "matrices",
    "tensors_of",
    "without_wrappers",
]


def expect(condition: Any, message: str) -> None:
    """Raises BadFileError if a condition does not hold."""
    if not condition:
        raise BadFileError(message)


def json_object(files: Mapping[str, bytes], path: str) -> dict[str, Any]:
    """Returns a file's JSON object; of duplicate keys the last counts, as in Python's reader."""
    expect(path in files, f"{path} is missing")
    try:
        value = json.loads(files[path].decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadFileError(f"{path} is no JSON: {error}") from error
    expect(isinstance(value, dict), f"{path} is no object")
    return value


def tensors_of(files: Mapping[str, bytes], path: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns the tensors of a file."""
    expect(path in files, f"{path} is missing")
    return unpack(files[path])


def is_number(value: Any) -> bool:
    """Whether a value of JSON is a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 1e300


def floats(tensor: Tensor, name: str) -> np.ndarray:
    """Returns a factor's numbers, which must be finite floats."""
    expect(tensor.is_float, f"{name} is {tensor.dtype}")
    numbers = tensor.numbers
    expect(np.isfinite(numbers).all(), f"{name} is not finite")
    return numbers


def matrices(name: str, *arrays: np.ndarray) -> None:
    """Refuses factors that are not non-empty matrices."""
    expect(all(array.ndim == 2 and array.size for array in arrays), f"{name}: no matrices")


_WRAPPERS = re.compile(
    r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|module|base_model\.model)\."
)


def without_wrappers(path: str) -> str:
    """Returns a module's path without the wrappers of torch.compile, FSDP, DDP and PEFT."""
    return _WRAPPERS.sub("", path)
