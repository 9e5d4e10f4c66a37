"""Reads the LoRA leaves of an Orbax checkpoint, and the metadata next to them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxmix.converters.adapters.common.tensor_files import parse_json_or_none
from jaxmix.converters.files.orbax_sizes import check_sizes
from jaxmix.errors import CheckpointError
from jaxmix.placement.names import leaf_names
from jaxmix.untrusted.files import read_small

__all__ = ["Restored", "is_orbax", "restore"]

# Files that Orbax writes to a checkpoint's folder.
_ORBAX = ("_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt")
# The item's name in the folder of a step: MaxText, tunix, openpi.
_ITEMS = ("items", "model_params", "params")


@dataclass(frozen=True)
class Restored:
    """The LoRA of a checkpoint.

    Args:
        tree: The factors by their paths.
        record: The metadata of MaxText.
        others: The paths of leaves that are not factors, which are not read.
        is_tunix: Whether the folder is one of tunix.
    """

    tree: Mapping[str, Any]
    record: Mapping[str, Any]
    others: tuple[str, ...] = ()
    is_tunix: bool = False


def is_orbax(path: Path) -> bool:
    """Returns whether a folder has an Orbax checkpoint, its item, or steps."""
    folders = [path, *(path / item for item in _ITEMS)]
    folders += [step / item for step in _steps(path) for item in _ITEMS]
    return any((folder / name).exists() for folder in folders for name in _ORBAX)


def restore(path: Path) -> Restored:
    """Reads the LoRA leaves of a checkpoint.

    Args:
        path: A step's folder, the item in it, or the folder of a run with one step.

    Returns:
        The leaves and the metadata.

    Raises:
        CheckpointError: If there are several steps, or it can't be read.
    """
    folder = _folder(path)
    record: dict[str, Any] = {}
    for parent in (folder, folder.parent):
        try:
            text = read_small(parent / "_CHECKPOINT_METADATA").decode()
        except (OSError, ValueError):
            continue
        data = parse_json_or_none(text)
        custom = data.get("custom_metadata") if isinstance(data, dict) else None
        lora = custom.get("lora") if isinstance(custom, dict) else None
        record = {**lora, **record} if isinstance(lora, dict) else record
    try:
        tree, others = _read(folder.resolve())
    except CheckpointError:
        raise
    except Exception as error:  # the types differ between versions
        reason = str(error).rstrip(".")
        raise CheckpointError(
            f"{path} is not a readable Orbax checkpoint: {reason}. Pass the folder of a step, "
            "which contains _METADATA, or load the tree yourself: "
            "jaxmix.converters.qwix.qwix_adapter."
        ) from error
    return Restored(tree, record, others, folder.name == "model_params")


def _read(folder: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Reads the factors in a checkpoint by their paths, and the paths of its other leaves.

    They are read as NumPy arrays, since the devices that saved them may be absent. The other leaves
    are not read.
    """
    import orbax.checkpoint as ocp

    with ocp.PyTreeCheckpointer() as reader:
        check_sizes(reader, folder)
        metadata = reader.metadata(folder).item_metadata
        if metadata is None:
            raise FileNotFoundError("it has no metadata of Orbax")
        paths, _ = jax.tree_util.tree_flatten_with_path(metadata.tree)
        names = leaf_names([path for path, _ in paths])
        selected = [i for i, name in enumerate(names) if "lora_" in name]
        tree: dict[Any, Any] = {}
        for i in selected:
            node = tree
            *above, last = (_key(key) for key in paths[i][0])
            for key in above:
                node = node.setdefault(key, {})
            node[last] = paths[i][1]
        if not selected:
            return {}, tuple(names)
        restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        args = ocp.args.PyTreeRestore(item=tree, restore_args=restore_args, partial_restore=True)
        restored = reader.restore(folder, args=args)
    leaves = jax.tree_util.tree_flatten_with_path(restored)[0]
    arrays = zip(leaf_names([path for path, _ in leaves]), leaves, strict=True)
    others = tuple(name for i, name in enumerate(names) if i not in set(selected))
    return {name: leaf for name, (_, leaf) in arrays}, others


def _key(key: Any) -> Any:
    """Returns a dict's key in a path; refuses lists, which Orbax can't restore in part."""
    if isinstance(key, jax.tree_util.DictKey):
        return key.key
    raise TypeError(f"its tree contains {key}, expected only dicts")


def _folder(path: Path) -> Path:
    """The folder of the checkpoint itself."""
    steps = _steps(path)
    if len(steps) > 1:
        names = ", ".join(sorted((step.name for step in steps), key=int))
        raise CheckpointError(f"{path} has the steps {names}. Pass the folder of one of them.")
    for above in (*steps, path):
        for item in _ITEMS:
            if (above / item / "_METADATA").exists():
                return above / item
    return path


def _steps(path: Path) -> list[Path]:
    """The steps of a run: folders with a number as name that contain an item."""
    if not path.is_dir() or (path / "_METADATA").exists():
        return []
    try:
        numbers = [step for step in path.iterdir() if step.name.isdigit() and step.is_dir()]
    except OSError:  # a folder that can't be listed may still be readable
        return []
    return [step for step in numbers if any((step / item).is_dir() for item in _ITEMS)]
