"""Orbax checkpoints with LoRA in them: whose folder it is, and what stands beside the tree."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxmix.converters.lycoris.files import json_of
from jaxmix.errors import CheckpointError

__all__ = ["Restored", "is_orbax", "restored"]

# What Orbax writes into a checkpoint's folder.
_ORBAX = ("_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt")
# What a step's folder calls the item: MaxText, tunix, openpi.
_ITEMS = ("items", "model_params", "params")


@dataclass(frozen=True)
class Restored:
    """A checkpoint's tree.

    Args:
        tree: the tree.
        record: what MaxText wrote beside it.
        is_tunix: whether the folder is one of tunix's.
    """

    tree: Mapping[str, Any]
    record: Mapping[str, Any]
    is_tunix: bool


def is_orbax(path: Path) -> bool:
    """Whether a folder holds an Orbax checkpoint: itself, its step's item, or its steps."""
    folders = [path, *(path / item for item in _ITEMS)]
    folders += [step / item for step in _steps(path) for item in _ITEMS]
    return any((folder / name).exists() for folder in folders for name in _ORBAX)


def restored(path: Path) -> Restored:
    """The tree of a checkpoint.

    Args:
        path: a step's folder, the item in it, or the folder of a run that has one step.

    Returns:
        The tree, and what stands beside it.

    Raises:
        CheckpointError: if there are several steps, or it can't be read.
    """
    folder = _folder(path)
    record: dict[str, Any] = {}
    for one in (folder, folder.parent):
        try:
            text = (one / "_CHECKPOINT_METADATA").read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        data = json_of(text)
        custom = data.get("custom_metadata") if isinstance(data, dict) else None
        lora = custom.get("lora") if isinstance(custom, dict) else None
        record = {**lora, **record} if isinstance(lora, dict) else record
    try:
        import orbax.checkpoint as ocp

        with ocp.PyTreeCheckpointer() as reader:
            tree = reader.restore(folder.resolve())
    except Exception as error:  # of kinds that differ from version to version
        why = str(error).rstrip(".")
        raise CheckpointError(
            f"{path} is no Orbax checkpoint that can be read: {why}. Give the folder of a step, "
            "which holds _METADATA, or load the tree yourself: jaxmix.converters.qwix.qwix_adapter."
        ) from error
    return Restored(tree, record, folder.name == "model_params")


def _folder(path: Path) -> Path:
    """The folder of the checkpoint itself."""
    steps = _steps(path)
    if len(steps) > 1:
        names = ", ".join(sorted((step.name for step in steps), key=int))
        raise CheckpointError(f"{path} has the steps {names}. Give the folder of one of them.")
    for above in (*steps, path):
        for item in _ITEMS:
            if (above / item / "_METADATA").exists():
                return above / item
    return path


def _steps(path: Path) -> list[Path]:
    """The steps of a run: folders that are numbers and hold an item."""
    if not path.is_dir() or (path / "_METADATA").exists():
        return []
    numbers = [step for step in path.iterdir() if step.name.isdigit() and step.is_dir()]
    return [step for step in numbers if any((step / item).is_dir() for item in _ITEMS)]
