"""What a safetensors file says of itself, before its tensors are read."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from jaxmix.converters.peft.tensors import read_tensors
from jaxmix.errors import CheckpointError

__all__ = ["file_keys", "file_metadata", "file_tensors", "json_of", "stands_alone"]


def file_keys(path: Path) -> tuple[str, ...]:
    """The names of a file's tensors; none if it can't be read, which its reader will say."""
    try:
        with safe_open(path, framework="numpy") as file:
            return tuple(file.keys())
    except (SafetensorError, OSError):
        return ()


def file_metadata(path: Path) -> dict[str, str]:
    """The texts that a file carries beside its tensors; none if it can't be read."""
    try:
        with safe_open(path, framework="numpy") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError):
        return {}


def file_tensors(path: Path) -> dict[str, Any]:
    """The tensors of a file by their names.

    Args:
        path: the file.

    Returns:
        ``{key: array}``, as `jaxmix.converters.peft.tensors.read_tensors` gives them.

    Raises:
        CheckpointError: if there is no such file, or it is damaged or empty.
        AdapterError: if a number in it is not finite.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is no file, expected a .safetensors. Give its path.")
    return read_tensors(path)


def stands_alone(path: Path) -> bool:
    """Whether a file is an adapter by itself: a safetensors with no config beside it."""
    return (
        path.is_file()
        and path.suffix == ".safetensors"
        and not (path.parent / "adapter_config.json").exists()
    )


def json_of(text: str | None) -> object:
    """The value that a text of JSON holds; None if it is none."""
    try:
        return None if text is None else json.loads(text)
    except ValueError:
        return None
