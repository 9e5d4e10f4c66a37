"""Recipes: a small file of JSON that names the parts of a mix, and holds none of their arrays."""

import json
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxmix.converters.adapters.finding import is_hub_id
from jaxmix.converters.adapters.mixfile.record import FORMAT, VERSION, is_ours
from jaxmix.errors import CheckpointError, listing, option
from jaxmix.untrusted.files import local_path, output_path

__all__ = ["save_recipe"]


def save_recipe(
    sources: Sequence[tuple[str, float]], path: str | os.PathLike[str], *, force: bool = False
) -> Path:
    """Writes a recipe, which `jaxmix.load` reads as a mix.

    Args:
        sources: a path or hub id and a strength for each part, the one that is applied first first.
        path: the file to write, ``….json``. Parts that are paths lie in its folder or below.
        force: whether to replace a recipe that stands there.

    Returns:
        The file.

    Raises:
        CheckpointError: if a part lies elsewhere, or the place is taken or can't be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     there = save_recipe([("owner/name", 0.5)], folder + "/recipe.json")
        ...     print(json.loads(there.read_text())["parts"])
        [{'source': 'owner/name', 'strength': 0.5}]
    """
    place = output_path(path)
    if place.suffix != ".json":
        raise CheckpointError(f"{place} is no name for a recipe, expected one in .json.")
    if place.exists() and not force:
        raise CheckpointError(
            f"{place} exists. Give another name, or replace it: {option('force')}."
        )
    if place.exists() and not is_ours(place):
        raise CheckpointError(
            f"{place} is not replaced, for it is no recipe. Give another name, or move it."
        )
    parts: list[dict[str, Any]] = []
    outside: list[str] = []
    folder = place.resolve().parent
    for source, strength in sources:
        here = local_path(source, "adapter")
        if here.exists():
            if not here.resolve().is_relative_to(folder):
                outside.append(source)
                continue
            source = here.resolve().relative_to(folder).as_posix()
            # As a path, where it could be taken for a hub id.
            source = f"./{source}" if is_hub_id(source) else source
        parts.append({"source": source, "strength": strength})
    if outside:
        raise CheckpointError(
            f"parts that lie outside of {folder}, the folder of the recipe:{listing(outside)}\n"
            "Expected paths in it or below, so that it can be moved with them. Write the recipe "
            "elsewhere, or save the mix whole: jaxmix.save."
        )
    text = json.dumps({"format": FORMAT, "version": VERSION, "parts": parts}, indent=2) + "\n"
    beside = place.with_name(f".{place.name}.{secrets.token_hex(8)}")
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(place)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise CheckpointError(f"{place} can't be written: {error}.") from error
    return place
