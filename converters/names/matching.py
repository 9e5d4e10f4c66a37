"""Renames the sites of adapters from modules' names in memory to a checkpoint's names on disk."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from jaxmix.converters.checkpoints.huggingface import CONFIG_FILE, Checkpoint
from jaxmix.converters.names.finding import map_of
from jaxmix.converters.names.table import is_known
from jaxmix.mixing import Mix
from jaxmix.placement.canonical import Modules
from jaxmix.placement.inferring import inferred
from jaxmix.placement.layout import Layout, named
from jaxmix.placement.name_map import NameMap
from jaxmix.placement.naming import Names, map_named, renamed_parts

__all__ = ["modules_of", "with_stored_names"]


def modules_of(checkpoint: Checkpoint, names: Names = None) -> Modules | None:
    """Returns a checkpoint's modules by the names that they have in memory.

    Args:
        checkpoint: The base; its config.json names the model.
        names: The name map to use instead, ``""`` for none.

    Returns:
        The modules; None if it is unknown how transformers would rename them.
    """
    if names == "":
        return None
    shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
    if names is not None:
        return Modules(map_named(names), shapes)
    config: Mapping[str, Any] = {} if checkpoint.is_file else checkpoint.json(CONFIG_FILE)
    model_names = map_of(config)
    return None if model_names is None else Modules(model_names, shapes)


def with_stored_names(
    mixed: Mix, checkpoint: Checkpoint, layout: Layout, names: Names = None
) -> tuple[Mix, Layout]:
    """Returns a mix whose sites have the names of a checkpoint's modules on disk.

    PEFT writes the names that modules have in memory. transformers renames, stacks and splits
    tensors when it loads a checkpoint, so the names on disk may differ. A part of the mix whose
    sites are all on disk keeps its names; any other is renamed, and cut where its weights are
    separate on disk. Without a config, the map is inferred from the names.

    Args:
        mixed: The adapters.
        checkpoint: The base.
        layout: Where the sites are among the tensors.
        names: The name map, ``""`` for none, None to find it.

    Returns:
        The mix, and the layout with the places of sites that share a tensor. Sites that match no
        tensor keep their names.

    Raises:
        LayoutError: If a site matches several modules, or its update can't be cut.
    """
    modules = modules_of(checkpoint, names)
    if modules is None:
        if names == "" or _renames_by_code(checkpoint):
            return mixed, layout
        shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
        sites = [site for part in mixed.parts for site in part.updates]
        modules = Modules(NameMap("none"), shapes)
        if modules.stored.issuperset(sites):
            return mixed, layout
        inferred_names = inferred(sites, shapes)
        if inferred_names is None:
            return mixed, layout
        modules = Modules(inferred_names, shapes)
    renamed = renamed_parts(mixed.parts, modules, layout, joins=True)
    return replace(mixed, parts=tuple(renamed.parts)), named(renamed.layout)


def _renames_by_code(checkpoint: Checkpoint) -> bool:
    """Whether transformers has the model but renames its tensors by code instead of a table."""
    config = {} if checkpoint.is_file else checkpoint.json(CONFIG_FILE)
    return "auto_map" not in config and is_known(config)
