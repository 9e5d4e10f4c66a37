"""Reads a saved mix, or a recipe."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxmix.adapter import Adapter
from jaxmix.converters.adapters.format import Finders
from jaxmix.converters.adapters.mixfile.coding import decode_strength, decode_updates
from jaxmix.converters.adapters.mixfile.hashing import fingerprint
from jaxmix.converters.adapters.mixfile.record import MIX_FILE, parse
from jaxmix.converters.adapters.mixfile.sources import find_source
from jaxmix.converters.adapters.mixfile.tensors import read, tensor_keys
from jaxmix.errors import AdapterError, CheckpointError, JaxmixError, listing, remedy
from jaxmix.mixing import Mix, mix

__all__ = ["is_mix", "read_mix"]

# The largest depth of recipes within recipes.
_DEPTH = 16
# The largest number of adapters that recipes may have in all.
_PARTS = 1024


def is_mix(path: Path) -> bool:
    """Returns whether a folder or file is a saved mix or a recipe, by its name.

    Args:
        path: A folder with mix.json, or a JSON file that is not PEFT's config.

    Returns:
        True if so.
    """
    if path.is_file():
        is_other = path.name == "adapter_config.json" or path.name.endswith(".index.json")
        return path.suffix == ".json" and not is_other
    return (path / MIX_FILE).exists()


@dataclass(frozen=True)
class _Recipes:
    """The settings and the cache that nested recipes share.

    Args:
        finders: Finds the parts of a recipe.
        base: The model on which the adapters were trained.
        ignore: Names and globs of files of weights next to the adapters to leave out.
        above: The recipes that contain the current one.
        known: The adapters read so far, so that each file is read once.
    """

    finders: Finders
    base: Any
    ignore: tuple[str, ...]
    above: tuple[Path, ...] = ()
    known: dict[Any, Adapter | Mix] = field(default_factory=dict)


def read_mix(
    path: Path,
    name: str = "",
    strength: Any = 1.0,
    *,
    finders: Finders,
    base: Any = None,
    ignore: Sequence[str] = (),
) -> Adapter | Mix:
    """Reads a folder of `save`, or a recipe: a mix.json whose parts are paths or hub ids.

    Paths are relative to the folder of the recipe and stay inside it. Recipes may contain recipes:
    their parts are joined, their strengths multiplied.

    Args:
        path: The folder, or the JSON file; a mix's tensors are stored next to it.
        name: The adapter's name; for a mix, the prefix of its parts' names, as in ``name/part``.
            "" keeps the names in the file.
        strength: A real scalar that multiplies every part's strength.
        finders: Finds the parts of a recipe.
        base: The model that a recipe's adapters were trained on, for the readers that take it.
        ignore: Names and globs of files of weights next to a recipe's adapters to leave out.

    Returns:
        The saved adapter or mix. Its arrays are NumPy's, in the shapes and dtypes that were saved:
        LoRA's A (r, in) and B (out, r). An array that was shared is shared again.

    Raises:
        CheckpointError: If a file is missing or damaged, tensors or fields are missing or left
            over, a hash differs, a path leads out of the folder, a recipe contains itself, or there
            are more than 1,024 parts in all.
        UnsupportedError: If the file is of a newer version.
        AdapterError: If a number is not finite, or two parts have the same name.

    Source: the format is jaxmix's own, `jaxmix.converters.adapters.mixfile`.
    """
    recipes = _Recipes(finders, base, tuple(ignore))
    return _times(_named(_read(path, recipes), name), strength)


def _read(path: Path, recipes: _Recipes) -> Adapter | Mix:
    """Reads a saved mix or a recipe under its own names."""
    file = path / MIX_FILE if path.is_dir() else path
    _check_depth(file, recipes.above)
    head = parse(file)
    tensors = _tensors(file, head["parts"])
    used: set[str] = set()
    parts: list[Adapter | Mix] = []
    changed: list[str] = []
    digests: dict[int, str] = {}
    for i, record in enumerate(head["parts"], 1):
        where = f"{file}: part {i}"
        is_stored = "updates" in record
        if is_stored:
            part: Adapter | Mix = _stored_part(record, tensors, used, where)
        else:
            part = _source_part(record, file, where, recipes)
        digest = fingerprint(part, digests) if "sha256" in record else None
        if digest != record.get("sha256"):
            changed.append(f"part {i}, {record.get('name') or record['source']}: {digest}")
        # A recipe's strength is not part of the hash.
        parts.append(part if is_stored else _times(part, float(record.get("strength", 1.0))))
        _check_count(file, parts)
    if unused := sorted(set(tensors) - used):
        raise CheckpointError(
            f"{_tensors_file(file)} has tensors that no part uses:{listing(unused)}\n"
            "Expected only the tensors of mix.json. Save the mix again."
        )
    if changed:
        raise CheckpointError(
            f"{file}: parts whose hash (SHA-256 of their updates) differs from the one in the file:"
            f"{listing(changed)}\nThey have changed since it was written. Use the files that "
            "belong together; if the change is intended, replace the hash by the new one."
        )
    return _joined(head["kind"], parts, file)


def _check_depth(file: Path, above: tuple[Path, ...]) -> None:
    """Refuses recipes that contain themselves or are nested too deep."""
    if (resolved := file.resolve()) in above:
        raise CheckpointError(
            f"{file} contains itself, through {len(above)} recipe"
            f"{'' if len(above) == 1 else 's'}. Expected parts that are adapters, or recipes of "
            f"others; remove the part that leads back to {resolved.parent.name}."
        )
    if len(above) >= _DEPTH:
        raise CheckpointError(
            f"{file} is nested {len(above)} recipes deep, expected at most {_DEPTH}. Save the "
            f"inner recipes with {remedy('jaxmix.save', '`jaxmix convert RECIPE --to mix`')}."
        )


def _check_count(file: Path, parts: Sequence[Adapter | Mix]) -> None:
    """Refuses recipes whose parts are too many."""
    if sum(len(part.parts) for part in parts) > _PARTS:
        one_adapter = remedy(
            "jaxmix.combine or jaxmix.to_lora", "`jaxmix combine` or `jaxmix export --rank RANK`"
        )
        raise CheckpointError(
            f"{file} has more than {_PARTS:,} parts, including those of the recipes in it. Save "
            f"the inner recipes as one adapter: {one_adapter}."
        )


def _tensors_file(file: Path) -> Path:
    """The file of tensors that belongs to a JSON file."""
    return file.with_suffix(".safetensors")


def _tensors(file: Path, parts: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """The arrays of the parts that are stored in the file itself."""
    path = _tensors_file(file)
    is_stored = any("updates" in part for part in parts)
    if is_stored and not path.exists():
        raise CheckpointError(
            f"{file.parent} has no {path.name}, expected next to {file.name}, whose parts have "
            "their arrays in it. Copy, download or save it again."
        )
    # A file of that name next to a recipe need not belong to it.
    return read(path, tensor_keys(path)) if is_stored or file.name == MIX_FILE else {}


def _stored_part(
    record: Mapping[str, Any], tensors: Mapping[str, np.ndarray], used: set[str], where: str
) -> Adapter:
    """Decodes a part whose updates are in the file."""
    strength = decode_strength(record["strength"], tensors, used, where)
    updates = decode_updates(record["updates"], tensors, used, where)
    metadata = record.get("metadata", {})
    return Adapter(updates, strength, record["name"], record["source"], metadata)


def _source_part(
    record: Mapping[str, Any], file: Path, where: str, recipes: _Recipes
) -> Adapter | Mix:
    """Reads a part from its source, at its strength there."""
    where = f"{where}, {record['source']}"
    options = dict(record.get("options", {}))
    ignore = (*recipes.ignore, *((record["ignore"],) if record.get("ignore") else ()))
    known = recipes.known
    try:
        source = find_source(record, file, where, ignore, recipes.finders)
        key = (source.path, source.format.name, source.source, source.extra_weights, ignore)
        key = (*key, tuple(sorted(options.items())))
        if key not in known:
            if source.format.names_parts and not options:
                above = (*recipes.above, file.resolve())
                known[key] = _read(source.path, replace(recipes, ignore=ignore, above=above))
            else:
                if recipes.base is not None and "base" in source.format.options:
                    options["base"] = recipes.base
                known[key] = source.read(None, 1.0, **options)
        return _named(known[key], record.get("name", ""))
    except JaxmixError as error:
        if isinstance(error, CheckpointError) and str(error).startswith(where):
            raise
        raise type(error)(f"{where}: {error}") from error


def _times(part: Adapter | Mix, strength: Any) -> Adapter | Mix:
    """Multiplies by a strength; the same object where it is 1, as in `mix`."""
    return part if isinstance(strength, float) and strength == 1.0 else part * strength


def _joined(kind: str, parts: list[Adapter | Mix], file: Path) -> Adapter | Mix:
    """Returns the adapter or mix made of the parts."""
    if kind == "adapter":
        if len(parts) != 1 or not isinstance(parts[0], Adapter):
            count = sum(len(part.parts) for part in parts)
            raise CheckpointError(
                f"{file}: kind is 'adapter', but there are {count} adapters, expected 1. Write "
                "'mix', or leave kind out."
            )
        return parts[0]
    try:
        return mix(*parts)
    except AdapterError as error:
        raise AdapterError(f'{file}: {error} In a recipe: "name": "other".') from error


def _named(part: Adapter | Mix, name: str) -> Adapter | Mix:
    """Renames an adapter, or prefixes the names of a mix's parts; "" changes nothing."""
    if not name:
        return part
    if isinstance(part, Adapter):
        return part.renamed(name)
    return Mix(tuple(inner.renamed(f"{name}/{inner.name}") for inner in part.parts))
