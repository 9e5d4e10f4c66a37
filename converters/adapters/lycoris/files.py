"""What an adapter's file says of itself, before its tensors are read: safetensors, or torch's."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from jaxmix.converters.adapters.peft.tensors import read_tensors
from jaxmix.converters.files.torch_files import has_torch, is_torch_file, torch_tensors
from jaxmix.errors import CheckpointError, listing
from jaxmix.placement.names import unwrapped
from jaxmix.untrusted.files import check_regular, parse_json

__all__ = [
    "file_keys",
    "file_metadata",
    "file_tensors",
    "has_peft_keys",
    "json_of",
    "stands_alone",
    "without_wrappers",
]


def file_keys(path: Path) -> tuple[str, ...]:
    """The names of a file's tensors; none if it can't be read, which its reader will say.

    They are without what wrappers of PyTorch add, as those of `file_tensors`.
    """
    try:
        if is_torch_file(path):
            keys = torch_tensors(path) if path.is_file() and has_torch() else {}
            return tuple(unwrapped(keys).values())
        check_regular(path)
        with safe_open(path, framework="numpy") as file:
            return tuple(unwrapped(file.keys()).values())
    except (SafetensorError, OSError, CheckpointError):
        return ()


def file_metadata(path: Path) -> dict[str, str]:
    """The texts that a file carries beside its tensors; none if it can't be read."""
    try:
        check_regular(path)
        with safe_open(path, framework="numpy") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError, CheckpointError):
        return {}


def file_tensors(path: Path) -> dict[str, Any]:
    """The tensors of a file by their names.

    Args:
        path: the file.

    Returns:
        ``{key: array}``, as `peft.tensors.read_tensors` gives them, the keys
        without what wrappers of PyTorch add.

    Raises:
        CheckpointError: if there is no such file, or it is damaged or empty, or two keys are one
            without wrappers.
        AdapterError: if a number in it is not finite.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is no file, expected a .safetensors. Give its path.")
    return without_wrappers(read_tensors(path), str(path))


def without_wrappers(tensors: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Removes what wrappers of PyTorch add to the keys of a file.

    Args:
        tensors: the file's.
        where: the file, for messages.

    Returns:
        The tensors by the keys that are left.

    Raises:
        CheckpointError: if two keys become one; all pairs are listed.
    """
    found: dict[str, str] = {}
    pairs: list[str] = []
    for key, short in unwrapped(tensors).items():
        if (other := found.setdefault(short, key)) != key:
            pairs.append(f"{other} and {key}")
    if pairs:
        raise CheckpointError(
            f"{where}: keys that differ only in the names of wrappers (_orig_mod, module and so "
            f"on):{listing(pairs)}\nRemove one of each two from the file."
        )
    return {short: tensors[key] for short, key in found.items()}


def stands_alone(path: Path) -> bool:
    """Whether a file of tensors is an adapter by itself, and not the one of a PEFT config."""
    if not path.is_file() or not (path.suffix == ".safetensors" or is_torch_file(path)):
        return False
    return not (path.parent / "adapter_config.json").exists() or not has_peft_keys(path)


def has_peft_keys(path: Path) -> bool:
    """Whether a file of tensors is PEFT's, by its name or its keys; its config lies beside it."""
    is_named = path.name.startswith("adapter_model")
    return is_named or any(key.startswith("base_model.") for key in file_keys(path))


def json_of(text: str | None) -> object:
    """The value that a text of JSON holds; None if it is none."""
    try:
        return None if text is None else parse_json(text)
    except ValueError:
        return None
