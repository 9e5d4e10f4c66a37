"""An adapter's file of tensors, a safetensors file or one of ``torch.save``: names and metadata."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxmix.converters.adapters.common.tensors import read_tensors
from jaxmix.converters.files.torch_files import has_torch, is_torch_file, torch_tensors
from jaxmix.errors import CheckpointError, listing
from jaxmix.placement.names import unwrapped
from jaxmix.untrusted.files import parse_json
from jaxmix.untrusted.safetensors import opened_safetensors

__all__ = [
    "CONFIG_FILE",
    "file_keys",
    "file_metadata",
    "file_tensors",
    "has_peft_keys",
    "is_adapter_by_itself",
    "parse_json_or_none",
    "strip_wrappers",
]

# The config in a folder of PEFT, of AdapterHub and of mlx-lm.
CONFIG_FILE = "adapter_config.json"


def file_keys(path: Path) -> tuple[str, ...]:
    """Returns the names of a file's tensors, without those of PyTorch's wrappers.

    There are none if the file can't be read; the format's reader raises the error.
    """
    try:
        if is_torch_file(path):
            keys = torch_tensors(path) if path.is_file() and has_torch() else {}
            return tuple(unwrapped(keys).values())
        with opened_safetensors(path) as file:
            return tuple(unwrapped(file.keys()).values())
    except (OSError, CheckpointError):
        return ()


def file_metadata(path: Path) -> dict[str, str]:
    """Returns the metadata of a safetensors file; none if it can't be read."""
    try:
        with opened_safetensors(path) as file:
            return dict(file.metadata() or {})
    except CheckpointError:
        return {}


def file_tensors(path: Path) -> dict[str, Any]:
    """Returns the tensors of a file by their names, without those of PyTorch's wrappers.

    Args:
        path: The file.

    Returns:
        ``{key: array}``, the arrays as `read_tensors` returns them.

    Raises:
        CheckpointError: If the file is missing, damaged or empty, or two keys differ only in
            wrappers.
        AdapterError: If a number in it is not finite.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file, expected a .safetensors. Pass its path.")
    return strip_wrappers(read_tensors(path), str(path))


def strip_wrappers(tensors: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Removes the names of PyTorch's wrappers from a file's keys.

    Args:
        tensors: The file's tensors by key.
        where: The file, for messages.

    Returns:
        The tensors by the shortened keys.

    Raises:
        CheckpointError: If two keys become equal; all pairs are listed.
    """
    keys: dict[str, str] = {}
    pairs: list[str] = []
    for key, short in unwrapped(tensors).items():
        if (other := keys.setdefault(short, key)) != key:
            pairs.append(f"{other} and {key}")
    if pairs:
        raise CheckpointError(
            f"{where}: keys that differ only in the names of wrappers (such as _orig_mod and "
            f"module):{listing(pairs)}\nRemove one key of each pair from the file."
        )
    return {short: tensors[key] for short, key in keys.items()}


def is_adapter_by_itself(path: Path) -> bool:
    """Returns whether a file of tensors is a complete adapter, without a config of PEFT."""
    if not path.is_file() or not (path.suffix == ".safetensors" or is_torch_file(path)):
        return False
    return not (path.parent / CONFIG_FILE).exists() or not has_peft_keys(path)


def has_peft_keys(path: Path) -> bool:
    """Returns whether a file of tensors is PEFT's, by its name or its keys."""
    is_named = path.name.startswith("adapter_model")
    return is_named or any(key.startswith("base_model.") for key in file_keys(path))


def parse_json_or_none(text: str | None) -> object:
    """Parses a JSON document; None if there is none or it is invalid."""
    try:
        return None if text is None else parse_json(text)
    except ValueError:
        return None
