"""Finds the files of a folder that hold a PEFT adapter's tensors.

``adapter_model.safetensors`` takes precedence over its shards, and both over
``adapter_model.bin``, as in PEFT and transformers. Files of lower precedence are copies, and are
not read.
"""

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from jaxmix.converters.adapters.common.tensors import read_tensors
from jaxmix.converters.adapters.peft.config import folder_text
from jaxmix.converters.files.torch_files import TORCH_SUFFIXES, has_torch, pickle_recipe
from jaxmix.errors import CheckpointError, listing
from jaxmix.models.checkpoint import indexed_files, indexed_names

__all__ = [
    "INDEX_FILES",
    "PICKLE_FILE",
    "WEIGHTS_FILE",
    "is_adapter_file",
    "is_weights_path",
    "read_weights",
]

WEIGHTS_FILE = "adapter_model.safetensors"
PICKLE_FILE = "adapter_model.bin"
# The second is transformers' name of the index of an adapter's shards.
INDEX_FILES = ("adapter_model.safetensors.index.json", "model.safetensors.index.json")
_SHARD = re.compile(r"adapter_model-(\d+)-of-(\d+)\.safetensors")


def is_adapter_file(name: str) -> bool:
    """Returns whether a name is that of the adapter's file, a shard, or a copy in another form.

    Args:
        name: The file's name.

    Returns:
        True for ``adapter_model`` with any ending, and for its shards.
    """
    return name.startswith(("adapter_model.", "adapter_model-"))


def is_weights_path(path: Path) -> bool:
    """Returns whether a path is that of a file of tensors, or of an index of such files.

    Args:
        path: The path.

    Returns:
        True if so.
    """
    if not path.is_file():
        return False
    is_tensors = path.suffix.lower() in (".safetensors", *TORCH_SUFFIXES)
    return is_tensors or path.name in INDEX_FILES


def read_weights(path: Path, integers: tuple[str, ...] = ()) -> tuple[Path, dict[str, np.ndarray]]:
    """Reads the tensors of an adapter.

    Args:
        path: The adapter's folder, or a file in it.
        integers: The ends of keys that may hold integers of few bits.

    Returns:
        The file or the index, for messages, and ``{key: array}``.

    Raises:
        CheckpointError: If there is no file, a shard is missing or contradicts the index, or a file
            is damaged.
        AdapterError: If a number is not finite.
    """
    if path.is_file():
        index = path.name in INDEX_FILES
        return path, _read_index(path, integers) if index else read_tensors(path, integers)
    if (file := path / WEIGHTS_FILE).exists():
        return file, read_tensors(file, integers)
    for name in INDEX_FILES:
        if (index := path / name).is_file() and (name == INDEX_FILES[0] or _is_of_adapter(index)):
            return index, _read_index(index, integers)
    if shards := [entry for entry in _entries(path) if _SHARD.fullmatch(entry.name)]:
        return path, _joined(_complete(path, shards), integers)
    pickle = path / PICKLE_FILE
    if pickle.is_file() and has_torch():
        return pickle, read_tensors(pickle, integers)
    raise CheckpointError(_missing(path))


def _is_of_adapter(index: Path) -> bool:
    """Whether an index with a model's name lists an adapter's shards."""
    return all(map(is_adapter_file, indexed_names(index)))


def _read_index(index: Path, integers: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The tensors of the shards that an index lists, after checking both against each other."""
    return _joined(list(dict.fromkeys(indexed_files(index).values())), integers)


def _joined(shards: Iterable[Path], integers: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The tensors of several files."""
    tensors: dict[str, np.ndarray] = {}
    duplicates: list[str] = []
    for shard in shards:
        shard_tensors = read_tensors(shard, integers)
        duplicates += [f"{key}: again in {shard.name}" for key in shard_tensors if key in tensors]
        tensors |= shard_tensors
    if duplicates:
        raise CheckpointError(
            f"tensors that are in several shards:{listing(duplicates)}\n"
            "Are shards of two adapters mixed? Download or save the folder again."
        )
    return tensors


def _complete(folder: Path, shards: list[Path]) -> list[Path]:
    """Checks that all shards are present, from their names, if there is no index."""
    counts = {_number_and_count(shard)[1] for shard in shards}
    if len(counts) > 1:
        raise CheckpointError(
            f"{folder} has shards of several adapters and no index:"
            f"{listing(shard.name for shard in shards)}\nRemove the old ones."
        )
    count = counts.pop()
    if missing := sorted(
        set(range(1, count + 1)) - {_number_and_count(shard)[0] for shard in shards}
    ):
        raise CheckpointError(
            f"{folder} lacks shards {', '.join(map(str, missing))} of {count}; found "
            f"{', '.join(shard.name for shard in shards)}. Download the complete folder again."
        )
    return shards


def _number_and_count(shard: Path) -> tuple[int, int]:
    """A shard's number, and the number of shards."""
    match = _SHARD.fullmatch(shard.name)
    assert match is not None
    return int(match[1]), int(match[2])


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _missing(folder: Path) -> str:
    """The message about missing weights."""
    pickles = [entry.name for entry in _entries(folder) if entry.suffix in TORCH_SUFFIXES]
    if not pickles:
        return (
            f"{folder} has no {WEIGHTS_FILE}; found {folder_text(folder)}. "
            "Pass the folder that PEFT's save_pretrained wrote."
        )
    recipe = pickle_recipe(str(folder / pickles[0]), str(folder / WEIGHTS_FILE))
    return f"{folder} has {', '.join(pickles)} but no {WEIGHTS_FILE}. {recipe}"
