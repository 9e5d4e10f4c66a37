"""Writes recipes: small JSON files that name the parts of a mix, without their arrays."""

import json
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxmix.converters.adapters.mixfile.record import FORMAT, VERSION, is_ours
from jaxmix.converters.files.hub import is_hub_id
from jaxmix.errors import CheckpointError, listing, option, remedy
from jaxmix.untrusted.files import local_path, output_path

__all__ = ["save_recipe"]


def save_recipe(
    sources: Sequence[tuple[str, float]], path: str | os.PathLike[str], *, force: bool = False
) -> Path:
    """Writes a recipe, which `jaxmix.load` reads as a mix.

    Args:
        sources: A path or hub id and a strength for each part, in order of application.
        path: The file to write, ``….json``. Parts that are paths must be in its folder or below.
        force: Whether to replace an existing recipe.

    Returns:
        The file.

    Raises:
        CheckpointError: If a part is elsewhere, or the path is taken or can't be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = save_recipe([("owner/name", 0.5)], folder + "/recipe.json")
        ...     print(json.loads(file.read_text())["parts"])
        [{'source': 'owner/name', 'strength': 0.5}]
    """
    place = output_path(path)
    if place.suffix != ".json":
        raise CheckpointError(
            f"{place} is not a valid name for a recipe, expected one that ends in .json."
        )
    if place.exists() and not force:
        raise CheckpointError(
            f"{place} exists. Choose another name, or replace it: {option('force')}."
        )
    if place.exists() and not is_ours(place):
        raise CheckpointError(
            f"{place} is not replaced, since it is not a recipe. Choose another name, or move it."
        )
    parts: list[dict[str, Any]] = []
    outside: list[str] = []
    folder = place.resolve().parent
    for source, strength in sources:
        local = local_path(source, "adapter")
        if local.exists():
            if not local.resolve().is_relative_to(folder):
                outside.append(source)
                continue
            source = local.resolve().relative_to(folder).as_posix()
            # Marked as a path if it looks like a hub id.
            source = f"./{source}" if is_hub_id(source) else source
        parts.append({"source": source, "strength": strength})
    if outside:
        raise CheckpointError(
            f"parts outside of {folder}, the folder of the recipe:{listing(outside)}\n"
            "Expected paths in it or below, so the folder can be moved. Write the recipe "
            f"elsewhere, or save the mix with its arrays: {remedy('jaxmix.save', '--to mix')}."
        )
    text = json.dumps({"format": FORMAT, "version": VERSION, "parts": parts}, indent=2) + "\n"
    unfinished = place.with_name(f".{place.name}.{secrets.token_hex(8)}")
    try:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(place)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise CheckpointError(f"{place} can't be written: {error}.") from error
    return place
