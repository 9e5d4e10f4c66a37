"""Finds the source of a recipe's part: below the recipe's folder, or on the hub."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from jaxmix.converters.adapters.format import Finders, LocatedAdapter
from jaxmix.converters.adapters.mixfile.coding import short_repr
from jaxmix.converters.files.hub import is_hub_id
from jaxmix.errors import CheckpointError, remedy

__all__ = ["find_source"]


def find_source(
    record: Mapping[str, Any], file: Path, where: str, ignore: Sequence[str], finders: Finders
) -> LocatedAdapter:
    """Finds a part's source: a path next to the recipe, also on the hub, or a hub id.

    Args:
        record: The part in the recipe.
        file: The recipe.
        where: The part, for messages.
        ignore: Names and globs of files of weights next to the adapter to leave out.
        finders: Finds adapters on this machine and on the hub.

    Returns:
        The adapter that was found.

    Raises:
        CheckpointError: If there is none, or the source leads out of the recipe's folder.
        UnsupportedError: If its format is unknown.
    """
    source, subfolder = record["source"], record.get("subfolder")
    path = _path_inside(file.parent, source, where)
    options: dict[str, Any] = {
        "filename": record.get("filename"),
        "format": record.get("format"),
        "ignore": ignore,
    }
    suffix = f"/{subfolder}" if subfolder else ""
    if os.path.lexists(path):
        _check_links(path, file.parent, subfolder, where)
        if "revision" in record:
            raise CheckpointError("it is a folder on this machine, which has no revision")
        located = finders.find(path, subfolder=subfolder, **options)
        return replace(located, source=source + suffix)
    if is_hub_id(source) and not source.startswith("./"):
        revision = record.get("revision")
        return finders.find_on_hub(source, subfolder=subfolder, revision=revision, **options)
    if origin := _hub_origin(file.parent):
        hub_id, commit, folder = origin
        inner = (folder / source).as_posix() + suffix
        return finders.find_on_hub(hub_id, subfolder=inner, revision=commit, **options)
    raise CheckpointError(
        f"it is neither in {file.parent} nor a hub id. Expected a path relative to {file.name}, or "
        "'owner/name'."
    )


def _hub_origin(folder: Path) -> tuple[str, str, Path] | None:
    """The repository, commit and path of a folder in the hub's local cache; None of any other."""
    parts = folder.resolve().parts
    for i, part in enumerate(parts[1:-1], 1):
        if part == "snapshots" and parts[i - 1].startswith("models--"):
            return "/".join(parts[i - 1].split("--")[1:]), parts[i + 1], Path(*parts[i + 2 :])
    return None


def _path_inside(folder: Path, source: str, where: str) -> Path:
    """The path of a source, which must be relative and stay below the recipe's folder."""
    windows = PureWindowsPath(source)
    is_absolute = PurePosixPath(source).is_absolute() or bool(windows.drive or windows.root)
    if is_absolute or source.startswith("~") or ".." in windows.parts or "\\" in source:
        saving = remedy(
            "mix with jaxmix.mix and jaxmix.save", "save a mix with `jaxmix convert --to mix`"
        )
        raise CheckpointError(
            f"{where}: the source is {short_repr(source)}, expected a hub id, or a path below the "
            "folder of the recipe, with '/'. Move the recipe to a folder above its adapters, or "
            f"{saving}."
        )
    return folder / source


def _check_links(path: Path, folder: Path, subfolder: str | None, where: str) -> None:
    """Refuses a link out of the recipe's folder; for its files, the hub's cache is allowed."""
    end, home = (path / subfolder if subfolder else path).resolve(), folder.resolve()
    is_cached = (
        _hub_origin(folder) and end.parent.name == "blobs" and end.parents[1] in home.parents
    )
    if not (end.is_relative_to(home) or is_cached):
        raise CheckpointError(
            f"{where}: it is a link out of the recipe's folder. Expected a path below it; copy "
            "the adapter there."
        )
