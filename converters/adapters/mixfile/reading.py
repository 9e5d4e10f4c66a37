"""A saved mix, or a recipe, back."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxmix.adapter import Adapter
from jaxmix.converters.adapters.finding import Found, find, find_on_hub, is_hub_id
from jaxmix.converters.adapters.mixfile.coding import decode_strength, decode_updates
from jaxmix.converters.adapters.mixfile.hashing import fingerprint
from jaxmix.converters.adapters.mixfile.places import check_no_way_out, inside, on_hub
from jaxmix.converters.adapters.mixfile.record import MIX_FILE, parse
from jaxmix.converters.adapters.mixfile.tensors import read, tensor_keys
from jaxmix.errors import AdapterError, CheckpointError, JaxmixError, listing
from jaxmix.mixing import Mix, mix

__all__ = ["is_mix", "read_mix"]

# How deep recipes may lie in recipes.
_DEPTH = 16
# How many adapters they may have in all.
_PARTS = 1024
# What recipes have read already, so that each file is read once.
Known = dict[Any, Adapter | Mix]


def is_mix(path: Path) -> bool:
    """Whether a folder or file is a saved mix or a recipe, by its name.

    Args:
        path: a folder with mix.json, or a file of JSON that is not PEFT's config.

    Returns:
        Whether it is.
    """
    if path.is_file():
        is_other = path.name == "adapter_config.json" or path.name.endswith(".index.json")
        return path.suffix == ".json" and not is_other
    return (path / MIX_FILE).exists()


def read_mix(
    path: Path,
    name: str = "",
    strength: Any = 1.0,
    *,
    base: Any = None,
    ignore: Sequence[str] = (),
    above: tuple[Path, ...] = (),
    known: Known | None = None,
) -> Adapter | Mix:
    """Reads what `save` wrote, or a recipe: a mix.json whose parts are paths or hub ids.

    Paths are relative to the folder of the recipe and stay in it. Recipes may lie in recipes: their
    parts join, their strengths multiply.

    Args:
        path: the folder, or the file of JSON; a mix's tensors lie beside it.
        name: what to call the adapter; before the names of a mix's parts, as ``name/part``. "" to
            keep the names that the file says.
        strength: a real scalar with which every part's strength is multiplied.
        base: the model that a recipe's adapters were trained on, for those readers that take it.
        ignore: names and globs of files of weights beside a recipe's adapters to leave out.
        above: the recipes that ask for this one.
        known: what was read for them already; it is added to.

    Returns:
        The adapter or mix that was saved: arrays as NumPy's, in the shapes and dtypes in which they
        were, LoRA's A (r, in) and B (out, r); what was one array is one.

    Raises:
        CheckpointError: if a file is missing or damaged, has tensors or fields too few or too many,
            a hash differs, a path leads out of the folder, a recipe asks for itself, or there are
            more than 1,024 parts in all.
        UnsupportedError: if it is of a newer version.
        AdapterError: if a number is not finite, or two parts have one name.

    Example:
        >>> read_mix(Path("no/such/folder"))
        Traceback (most recent call last):
        ...
        jaxmix.errors.CheckpointError: no/such/folder can't be read: No such file or directory. ...

    Source: the format is jaxmix's own, `jaxmix.converters.adapters.mixfile`.
    """
    file = path / MIX_FILE if path.is_dir() else path
    _check_depth(file, above)
    known = {} if known is None else known
    head = parse(file)
    tensors = _tensors(file, head["parts"])
    used: set[str] = set()
    parts: list[Adapter | Mix] = []
    differ: list[str] = []
    digests: dict[int, str] = {}
    for i, part in enumerate(head["parts"], 1):
        where = f"{file}: part {i}"
        if "updates" in part:
            one: Adapter | Mix = _stored(part, tensors, used, where)
        else:
            one = _told(part, file, where, base, ignore, above, known)
        found = fingerprint(one, digests) if "sha256" in part else None
        if found != part.get("sha256"):
            differ.append(f"part {i}, {part.get('name') or part['source']}: {found}")
        # Its own strength is no part of a mix's hash.
        parts.append(one if "updates" in part else _times(one, float(part.get("strength", 1.0))))
        _check_count(file, parts)
    if left := sorted(set(tensors) - used):
        raise CheckpointError(
            f"{_beside(file)} has tensors that no part asks for:{listing(left)}\n"
            "Expected those of mix.json alone. Save the mix again."
        )
    if differ:
        raise CheckpointError(
            f"{file}: parts whose hash (SHA-256 of their updates) is not the one in the file:"
            f"{listing(differ)}\nThey changed since. Take the files that belong together; if the "
            "change is meant, put the new hash in the place of the old."
        )
    return _times(_whole(head["kind"], parts, file, name), strength)


def _check_depth(file: Path, above: tuple[Path, ...]) -> None:
    """Refuses recipes that go round, or too deep."""
    if (here := file.resolve()) in above:
        raise CheckpointError(
            f"{file} asks for itself, by way of {len(above)} recipe"
            f"{'' if len(above) == 1 else 's'}. Expected parts that are adapters, or recipes of "
            f"others; take out the part that leads back to {here.parent.name}."
        )
    if len(above) >= _DEPTH:
        raise CheckpointError(
            f"{file} lies {len(above)} recipes deep, expected {_DEPTH} at most. Save the inner "
            "ones with jaxmix.save."
        )


def _check_count(file: Path, parts: Sequence[Adapter | Mix]) -> None:
    """Refuses recipes of recipes that join to more than anyone means."""
    if sum(len(one.parts) for one in parts) > _PARTS:
        raise CheckpointError(
            f"{file} has more than {_PARTS:,} parts, those of the recipes in it counted. Save the "
            "inner ones as one adapter: jaxmix.combine or jaxmix.to_lora."
        )


def _beside(file: Path) -> Path:
    """The tensors of a file of JSON."""
    return file.with_suffix(".safetensors")


def _tensors(file: Path, parts: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """The arrays of the parts that have theirs here."""
    path = _beside(file)
    is_stored = any("updates" in part for part in parts)
    if is_stored and not path.exists():
        raise CheckpointError(
            f"{file.parent} has no {path.name}, expected it beside {file.name}, whose parts have "
            "their arrays there. Copy, download or save it again."
        )
    # Beside a recipe of another name may lie anything.
    return read(path, tensor_keys(path)) if is_stored or file.name == MIX_FILE else {}


def _stored(
    part: Mapping[str, Any], tensors: Mapping[str, np.ndarray], used: set[str], where: str
) -> Adapter:
    """A part whose updates are in the file."""
    strength = decode_strength(part["strength"], tensors, used, where)
    updates = decode_updates(part["updates"], tensors, used, where)
    return Adapter(updates, strength, part["name"], part["source"], part.get("metadata", {}))


def _times(one: Adapter | Mix, strength: Any) -> Adapter | Mix:
    """Times a strength; as it is where that is 1, as in `mix`."""
    return one if isinstance(strength, float) and strength == 1.0 else one * strength


def _whole(kind: str, parts: list[Adapter | Mix], file: Path, name: str) -> Adapter | Mix:
    """What the parts make, under a name if one is given."""
    if kind == "adapter":
        if len(parts) != 1 or not isinstance(parts[0], Adapter):
            count = sum(len(part.parts) for part in parts)
            raise CheckpointError(
                f"{file}: kind is 'adapter', and there are {count} adapters, expected 1. Write "
                "'mix', or leave kind out."
            )
        return _named(parts[0], name)
    try:
        mixed = mix(*parts)
    except AdapterError as error:
        raise AdapterError(f'{file}: {error} In a recipe: "name": "other".') from error
    return _named(mixed, name)


def _named(one: Adapter | Mix, name: str) -> Adapter | Mix:
    """What was read under another name, if one is given; a mix's parts keep theirs after it."""
    if not name:
        return one
    if isinstance(one, Adapter):
        return one.renamed(name)
    return Mix(tuple(part.renamed(f"{name}/{part.name}") for part in one.parts))


# --------------------------------------------------------------------------------- recipes


def _told(
    part: Mapping[str, Any],
    file: Path,
    where: str,
    base: Any,
    ignore: Sequence[str],
    above: tuple[Path, ...],
    known: Known,
) -> Adapter | Mix:
    """A part that is read from its source, at the strength that it has there."""
    source = part["source"]
    where = f"{where}, {source}"
    place = inside(file.parent, source, where)
    options = dict(part.get("options", {}))
    ignore = (*ignore, *((part["ignore"],) if part.get("ignore") else ()))
    try:
        found = _found(part, file, place, where, ignore)
        key = (found.path, found.format.name, found.source, found.beside, ignore)
        key = (*key, tuple(sorted(options.items())))
        given = part.get("name", "")
        if found.format.read is read_mix and not options:
            if key not in known:
                known[key] = read_mix(
                    found.path,
                    base=base,
                    ignore=ignore,
                    above=(*above, file.resolve()),
                    known=known,
                )
            return _named(known[key], given)
        if base is not None and "base" in found.format.options:
            options["base"] = base
        if key not in known:
            known[key] = found.read(None, 1.0, **options)
        return _named(known[key], given)
    except JaxmixError as error:
        if isinstance(error, CheckpointError) and str(error).startswith(where):
            raise
        raise type(error)(f"{where}: {error}") from error


def _found(
    part: Mapping[str, Any], file: Path, place: Path, where: str, ignore: Sequence[str]
) -> Found:
    """What a part's source is: a path beside the recipe, also on the hub, or a hub id."""
    # Not at the top: loading's table has a line for this format.
    from jaxmix.converters.adapters.loading import FORMATS

    source, subfolder = part["source"], part.get("subfolder")
    asked: dict[str, Any] = {
        "filename": part.get("filename"),
        "format": part.get("format"),
        "ignore": ignore,
    }
    inner = f"/{subfolder}" if subfolder else ""
    if os.path.lexists(place):
        check_no_way_out(place, file.parent, subfolder, where)
        if "revision" in part:
            raise CheckpointError("it is a folder here, which has no revision")
        found = find(FORMATS, place, subfolder=subfolder, **asked)
        return replace(found, source=source + inner)
    if is_hub_id(source) and not source.startswith("./"):
        revision = part.get("revision")
        return find_on_hub(FORMATS, source, subfolder=subfolder, revision=revision, **asked)
    if place_there := on_hub(file.parent):
        hub_id, commit, folder = place_there
        beside = (folder / source).as_posix() + inner
        return find_on_hub(FORMATS, hub_id, subfolder=beside, revision=commit, **asked)
    raise CheckpointError(
        f"it is neither in {file.parent} nor a hub id. Expected a path relative to {file.name}, or "
        "'owner/name'."
    )
