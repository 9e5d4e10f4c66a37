"""A saved mix of two parts, recipes, and the errors of reading them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import jaxmix
from jaxmix import Adapter, JaxmixError
from jaxmix.families import LoRA

__all__ = [
    "COMMIT",
    "LORA",
    "MIXED",
    "A",
    "B",
    "Data",
    "edited",
    "first",
    "recipe",
    "refused",
    "tensors",
]

COMMIT = "0123456789abcdef0123456789abcdef01234567"
A, B = np.arange(8.0, dtype=np.float32).reshape(2, 4), np.ones((5, 2))

LORA = LoRA(A, B, 0.5)

MIXED = jaxmix.mix(Adapter({"a": LORA, "b": LORA}, name="x"), Adapter({"a": LORA}, name="y"))

Data = dict[str, Any]


def refused(kind: type[JaxmixError], path: Path | str) -> str:
    """Returns the error's message; asserts its exact class."""
    with pytest.raises(JaxmixError) as caught:
        jaxmix.load(path)
    assert caught.type is kind
    return str(caught.value)


def edited(folder: Path, change: Callable[[Data], Any]) -> Path:
    """Applies a change to mix.json; returns the folder."""
    data = json.loads((folder / "mix.json").read_text())
    change(data)
    (folder / "mix.json").write_text(json.dumps(data))
    return folder


def tensors(folder: Path) -> dict[str, np.ndarray]:
    """Returns the folder's tensors."""
    return load_file(folder / "mix.safetensors")


def first(data: Data) -> Data:
    """Returns the first update of the first part."""
    return data["parts"][0]["updates"]["a"]


def recipe(path: Path, *parts: Any, **head: Any) -> Path:
    """Writes a recipe."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"format": "jaxmix", "version": 1, "parts": parts, **head}))
    return path
