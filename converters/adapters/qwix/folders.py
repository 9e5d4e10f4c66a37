"""Orbax checkpoints with LoRA in them: whose folder it is, and what stands beside the tree."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxmix.converters.adapters.lycoris.files import json_of
from jaxmix.converters.files.orbax_sizes import check_sizes
from jaxmix.errors import CheckpointError
from jaxmix.placement.names import leaf_names
from jaxmix.untrusted.files import read_small

__all__ = ["Restored", "is_orbax", "restored"]

# What Orbax writes into a checkpoint's folder.
_ORBAX = ("_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt")
# What a step's folder calls the item: MaxText, tunix, openpi.
_ITEMS = ("items", "model_params", "params")


@dataclass(frozen=True)
class Restored:
    """What was read of a checkpoint.

    Args:
        tree: the factors by their paths.
        record: what MaxText wrote beside it.
        others: the paths of leaves that are no factors, which were not read.
        is_tunix: whether the folder is one of tunix's.
    """

    tree: Mapping[str, Any]
    record: Mapping[str, Any]
    others: tuple[str, ...] = ()
    is_tunix: bool = False


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
            text = read_small(one / "_CHECKPOINT_METADATA").decode()
        except (OSError, ValueError):
            continue
        data = json_of(text)
        custom = data.get("custom_metadata") if isinstance(data, dict) else None
        lora = custom.get("lora") if isinstance(custom, dict) else None
        record = {**lora, **record} if isinstance(lora, dict) else record
    try:
        tree, others = _read(folder.resolve())
    except CheckpointError:
        raise
    except Exception as error:  # of kinds that differ from version to version
        why = str(error).rstrip(".")
        raise CheckpointError(
            f"{path} is no Orbax checkpoint that can be read: {why}. Give the folder of a step, "
            "which holds _METADATA, or load the tree yourself: jaxmix.converters.qwix.qwix_adapter."
        ) from error
    return Restored(tree, record, others, folder.name == "model_params")


def _read(folder: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The factors in a checkpoint by their paths, and the paths of its other leaves.

    They are read as NumPy's, since the devices that saved them need not be here; and a whole model
    beside them is left where it is.
    """
    import orbax.checkpoint as ocp

    with ocp.PyTreeCheckpointer() as reader:
        check_sizes(reader, folder)
        found = reader.metadata(folder).item_metadata
        if found is None:
            raise FileNotFoundError("it has no metadata of Orbax")
        paths, _ = jax.tree_util.tree_flatten_with_path(found.tree)
        names = leaf_names([path for path, _ in paths])
        kept = [at for at, name in enumerate(names) if "lora_" in name]
        wanted: dict[Any, Any] = {}
        for at in kept:
            node = wanted
            *above, last = (_key(key) for key in paths[at][0])
            for key in above:
                node = node.setdefault(key, {})
            node[last] = paths[at][1]
        if not kept:
            return {}, tuple(names)
        how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
        args = ocp.args.PyTreeRestore(item=wanted, restore_args=how, partial_restore=True)
        restored = reader.restore(folder, args=args)
    leaves = jax.tree_util.tree_flatten_with_path(restored)[0]
    arrays = zip(leaf_names([path for path, _ in leaves]), leaves, strict=True)
    others = tuple(name for at, name in enumerate(names) if at not in set(kept))
    return {name: leaf for name, (_, leaf) in arrays}, others


def _key(key: Any) -> Any:
    """A key of a path as a dict has it; of a list it is refused, since Orbax wants lists whole."""
    if isinstance(key, jax.tree_util.DictKey):
        return key.key
    raise TypeError(f"its tree has {key} in it, expected dicts alone")


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
    try:
        numbers = [step for step in path.iterdir() if step.name.isdigit() and step.is_dir()]
    except OSError:  # a folder that can't be listed; what is read from it may be known by name
        return []
    return [step for step in numbers if any((step / item).is_dir() for item in _ITEMS)]
