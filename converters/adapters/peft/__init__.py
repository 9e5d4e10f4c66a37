"""PEFT's folders: adapter_config.json with adapter_model.safetensors, its shards, or a .bin."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxmix.adapter import Adapter
from jaxmix.converters.adapters.common.base_model import base_model
from jaxmix.converters.adapters.common.shapes import SiteTensors
from jaxmix.converters.adapters.common.sidecars import read_sidecars
from jaxmix.converters.adapters.common.tensor_files import CONFIG_FILE
from jaxmix.converters.adapters.peft.about import TASKS, about
from jaxmix.converters.adapters.peft.config import read_config
from jaxmix.converters.adapters.peft.file import Config, File
from jaxmix.converters.adapters.peft.keys import Sites, sort_keys, split_leaf
from jaxmix.converters.adapters.peft.kinds import PEFT_TYPES
from jaxmix.converters.adapters.peft.plain import plain_values
from jaxmix.converters.adapters.peft.stack import peft_stack
from jaxmix.converters.adapters.peft.targets import check_targets
from jaxmix.converters.adapters.peft.tokens import (
    token_rows,
    with_copies_marked,
    with_tied_heads_saved,
)
from jaxmix.converters.adapters.peft.weights import WEIGHTS_FILE, read_weights
from jaxmix.converters.adapters.peft.wrapped import located, stripped
from jaxmix.errors import CheckpointError, JaxmixError, listing
from jaxmix.families import Rebase, Replace, Together, Update

__all__ = ["WEIGHTS_FILE", "peft_stack", "read_peft"]


def read_peft(
    path: Path,
    name: str,
    strength: Any = 1.0,
    *,
    base: Any = None,
    beside: Sequence[str] = (),
) -> Adapter:
    """Reads the adapter in a folder that PEFT's ``save_pretrained`` wrote.

    Args:
        path: The folder with the config and the tensors, or its file of tensors.
        name: The adapter's name.
        strength: The adapter's strength in a mix, a real scalar.
        base: The model that it was trained on, as `common.base_model.base_model` takes it, for the
            types whose files are incomplete without it.
        beside: The names of further files of weights in the folder, read as replaced leaves.

    Returns:
        The adapter, with one update per site. Arrays have the file's shapes and dtypes: LoRA's A
        (r, in) and B (out, r), and so on.

    Raises:
        CheckpointError: If a file is missing, damaged, incomplete, or has unknown keys.
        UnsupportedError: If the type, or a field of the config, is not supported.
        ShapeError: If factors disagree with each other or with the config.
        AdapterError: If a factor is not finite.

    Example:
        >>> read_peft(Path("no/such/folder"), "style")
        Traceback (most recent call last):
        ...
        jaxmix.errors.CheckpointError: no/such/folder has no adapter_config.json; found no such ...

    Source: ``peft/utils/save_and_load.py``.
    """
    folder = path.parent if path.is_file() else path
    config = read_config(folder / CONFIG_FILE)
    config = replace(config, values=plain_values(config))
    peft_type = PEFT_TYPES[config.family]
    path, tensors = read_weights(path, peft_type.integers)
    model = None if base is None else base_model(base)
    sites = sort_keys(tensors, config, path, () if model is None else model.modules)
    check_targets(config, sites.factors)
    extra = read_sidecars(
        folder,
        beside,
        split_leaf=split_leaf,
        sites=sites.factors,
        own_leaves=(sites.saved, sites.base),
        base=model,
    )
    for site, leaves in extra.items():
        sites.saved.setdefault(site, {}).update(leaves)
    file = File(config, tuple(map(stripped, sites.factors)), sites.shared, model)
    if derived := peft_type.derive_tensors(file):
        sites.factors.update({site: dict(factors) for site, factors in derived.items()})
        file = replace(file, sites=tuple(sites.factors))
    _check_saved(config, sites, () if model is None else model.modules)
    updates = _build(file, located(file, sites.factors), path)
    for site, rows in sites.tokens.items():
        _prepend(updates, site, token_rows(config, site, rows))
    with_tied_heads_saved(sites.saved, sites.base)
    # PEFT writes saved leaves to the base, below the adapter, so they are applied first.
    for site, leaves in sites.saved.items():
        _prepend(updates, site, Replace(leaves.get("weight"), leaves.get("bias")))
    for site, leaves in sites.base.items():
        _prepend(updates, site, Rebase(leaves["weight"]))
    metadata = about(config.values)
    return Adapter(with_copies_marked(updates), name=name, metadata=metadata) * strength


def _prepend(updates: dict[str, Update], site: str, update: Update) -> None:
    """Adds an update that is applied before the existing ones."""
    existing = updates.get(site)
    rest = (
        existing.parts
        if isinstance(existing, Together)
        else ()
        if existing is None
        else (existing,)
    )
    updates[site] = Together((update, *rest)) if rest else update


def _build(file: File, factors: Mapping[str, SiteTensors], path: Path) -> dict[str, Update]:
    """Builds the update of each site; failures are raised together, with the first one's type."""
    updates: dict[str, Update] = {}
    failed: list[tuple[str, JaxmixError]] = []
    family = file.config.family
    for site, arrays in factors.items():
        try:
            updates[site] = PEFT_TYPES[family].build(file, site, arrays)
        except JaxmixError as error:
            failed.append((site, error))
    if failed:
        lines = [f"{site}: {error}" for site, error in failed]
        raise type(failed[0][1])(
            f"{path}: factors that are not a valid {family} update:{listing(lines)}\n"
            "Was the file edited, or saved before the shards of its factors were gathered?"
        ) from failed[0][1]
    return updates


def _check_saved(config: Config, sites: Sites, base: Iterable[str]) -> None:
    """Checks that the file has factors, and the tensors that its config mentions.

    PEFT adds the usual heads of a task to the config, whether the model has them or not.
    """
    if not sites.factors and not sites.saved and not sites.tokens:
        raise CheckpointError(
            f"{config.path.parent} has no weights of a {config.family} adapter, expected "
            f"{', '.join(PEFT_TYPES[config.family].parameters)} of some module. Was it saved "
            "before the adapter was added, or by only one of several processes?"
        )
    modules = config.values.get("modules_to_save") or ()
    task = config.values.get("task_type")
    usual = TASKS.get(task, ()) if isinstance(task, str) else ()
    existing = {part for name in base for part in name.split(".")}
    if any(name not in usual or name in existing for name in modules) and not sites.saved:
        raise CheckpointError(
            f"{config.path}: modules_to_save is {modules!r}, but the file has none of their "
            "leaves. Save it again, or set modules_to_save to null if they were not trained."
        )
    if config.values.get("trainable_token_indices") and not sites.tokens:
        raise CheckpointError(
            f"{config.path}: trainable_token_indices is set, but the file has no "
            "token_adapter.trainable_tokens_delta. Save it again, or set it to null."
        )
    masks = (config.values.get("rank_pattern") or ()) if config.family == "ADALORA" else ()
    if missing := [name for name in masks if name.removesuffix(".lora_E") not in sites.factors]:
        raise CheckpointError(
            f"{config.path}: rank_pattern has masks for modules without factors in the file:"
            f"{listing(missing)}\nExpected <module>.lora_E of modules in the file. Save it again."
        )
