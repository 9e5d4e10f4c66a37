"""Finds an adapter and its format: a folder, a file, or a repository on the hub."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from jaxmix.converters.adapters.common.extra_weights import extra_weights, file_names
from jaxmix.converters.adapters.downloading import download
from jaxmix.converters.adapters.format import (
    Format,
    LocatedAdapter,
    format_named,
    is_folder_file,
    recognized_format,
)
from jaxmix.converters.adapters.single_file import choose_file, is_copy_of, split_filename
from jaxmix.converters.files.hub import is_hub_id
from jaxmix.converters.files.path_suggestions import refuse_mistyped, suggest_paths
from jaxmix.errors import CheckpointError, UnsupportedError, option
from jaxmix.untrusted.files import local_path, shown

__all__ = ["find", "find_on_hub", "is_hub_id"]


def find(
    formats: Sequence[Format],
    path_or_hub_id: str | os.PathLike[str],
    *,
    subfolder: str | None = None,
    filename: str | None = None,
    revision: str | None = None,
    format: str | None = None,
    ignore: Sequence[str] = (),
) -> LocatedAdapter:
    """Finds the adapter that `jaxmix.load` would read, and downloads it if it is on the hub.

    Args:
        formats: The table in `jaxmix.converters.adapters.loading`.
        path_or_hub_id: A folder, a file, or the id of a repository on the hub.
        subfolder: The adapter's folder within the folder or repository.
        filename: The adapter's file in that folder, where there are several.
        revision: The branch, tag or commit on the hub.
        format: The format's name; None to recognize it.
        ignore: Names and globs of files of weights next to the adapter to leave out.

    Returns:
        The adapter that was found.

    Raises:
        CheckpointError: If nothing is found, or nothing of a known format.
        UnsupportedError: If there is no format of that name.
    """
    text = os.fspath(path_or_hub_id)
    forced = None if format is None else format_named(formats, format)
    folder_in_name, name = split_filename(filename) if filename else (None, None)
    if subfolder is not None:
        _check_inside(subfolder)
    path = local_path(text, "adapter")
    is_folder, exists = path.is_dir(), path.exists()
    if is_folder or (exists and subfolder is None and name is None):
        below = "/".join(part for part in (subfolder, folder_in_name, name) if part)
        target = path / below if below else path
        if name and not target.is_file():
            raise CheckpointError(
                f"{target.parent} has no {name}; found "
                f"{', '.join(file_names(target.parent)[:8])}. Pass the name of a file in it."
            )
        return _find_local(formats, forced, target, text, below, ignore)
    if not exists and revision is None:
        refuse_mistyped(text, f"pass {option('revision', 'main')}" if is_hub_id(text) else "")
    if not exists and is_hub_id(text, revision):
        return find_on_hub(
            formats,
            text,
            subfolder=subfolder,
            filename=filename,
            revision=revision,
            format=format,
            ignore=ignore,
        )
    lacking = "subfolder" if subfolder else "file in it"
    problem = f"is a file, which has no {lacking}" if exists else "does not exist"
    near = "" if exists else suggest_paths(text)
    raise CheckpointError(
        f"{shown(text)} {problem}.{near}\nExpected {formats[-1].description}, or the id of a "
        "repository on the hub, 'owner/name'."
    )


def _find_local(
    formats: Sequence[Format],
    forced: Format | None,
    path: Path,
    text: str,
    below: str,
    ignore: Sequence[str],
) -> LocatedAdapter:
    """The adapter in a folder or file on this machine."""
    is_own_file: Callable[[str], bool] | None = None
    if path.is_dir() and (forced.is_single_file if forced else not _is_known(formats, path)):
        # No format recognizes the folder, but one of its files may be an adapter.
        is_adapter = _adapter_file_test(formats, forced, path)
        if (single := choose_file(file_names(path), str(path), is_adapter)) is not None:
            path, is_own_file = path / single, is_copy_of(single)
    format = forced or recognized_format(formats, path, text)
    is_own_file = is_own_file or format.is_own_file
    folder = path.parent if path.is_file() else path
    extra = () if is_own_file is None else extra_weights(file_names(folder), is_own_file, ignore)
    source = _public_source(text, below)
    if path.is_file() and format.is_own_file is not None:
        # A file of an adapter's folder: the folder's name is the adapter's.
        parent = str(Path(text).parent)
        inner = below.rpartition("/")[0]
        source = _public_source(text, inner) if below else _public_source(parent)
        return LocatedAdapter(path, format, folder.resolve().name, source, extra)
    default_name = path.resolve().name if path.is_dir() else path.stem
    if path.is_file() and is_own_file is not None:  # chosen in a folder, whose name it gets
        default_name = folder.resolve().name
    return LocatedAdapter(path, format, default_name, source, extra)


def _is_known(formats: Sequence[Format], path: Path) -> bool:
    return any(row.recognizes(path) for row in formats)


def _adapter_file_test(
    formats: Sequence[Format], forced: Format | None, folder: Path
) -> Callable[[str], bool]:
    """Maps the name of a file in a folder to whether it is an adapter by itself."""
    known = (forced,) if forced else formats
    return lambda name: not is_folder_file(formats, name) and _is_known(known, folder / name)


def find_on_hub(
    formats: Sequence[Format],
    hub_id: str,
    *,
    subfolder: str | None = None,
    filename: str | None = None,
    revision: str | None = None,
    format: str | None = None,
    ignore: Sequence[str] = (),
) -> LocatedAdapter:
    """Downloads an adapter from a repository on the hub, without looking for a local folder.

    Args:
        formats: The table of formats.
        hub_id: ``owner/name``.
        subfolder: The adapter's folder within the repository.
        filename: The adapter's file in that folder, where there are several.
        revision: The branch, tag or commit.
        format: The format's name; None for the format whose files the repository has.
        ignore: As in `find`.

    Returns:
        The adapter that was found.

    Raises:
        CheckpointError: If it can't be downloaded.
        UnsupportedError: If there is no format of that name, or it is not looked for on the hub.
    """
    if subfolder is not None:
        _check_inside(subfolder)
    forced = None if format is None else format_named(formats, format)
    candidates = (forced,) if forced else formats
    folder_in_name, name = split_filename(filename) if filename else (None, None)
    subfolder = "/".join(part for part in (subfolder, folder_in_name) if part) or None
    # The name of a file that belongs to a format's folder selects the folder.
    if name and any(name in row.files for row in candidates):
        name = None
    searched = [row for row in candidates[::-1] if row.files]
    if not searched and not (forced and forced.is_single_file) and not name:
        raise UnsupportedError(
            f"{hub_id}: adapters of the format {format!r} are single files, which are not looked "
            f"for on the hub. Download the file with `hf download {hub_id}`, and pass its path."
        )
    downloaded = download(hub_id, subfolder, revision, searched, name=name, ignore=ignore)
    path = downloaded.path
    row = downloaded.format or forced or recognized_format(formats, path, f"{hub_id}: {path.name}")
    folder = f"{hub_id}/{subfolder}".rstrip("/") if subfolder else hub_id
    source = f"{folder}/{name}" if name else folder
    default_name = Path(name).stem if name else folder.rsplit("/", 1)[-1]
    suffix = f"@{revision}" if revision else ""
    return LocatedAdapter(path, row, default_name, source + suffix, downloaded.extra_weights)


def _public_source(text: str, below: str = "") -> str:
    """Returns a path without its private part: only the last name unless it is relative."""
    path = Path(text)
    is_private = path.is_absolute() or text.startswith("~")
    public = path.expanduser().resolve().name if is_private else path.as_posix()
    return f"{public}/{below}" if below else public


def _check_inside(subfolder: str) -> None:
    """Refuses a subfolder outside its folder; links in the folder may lead anywhere."""
    parts = Path(subfolder).parts
    if not parts or Path(subfolder).is_absolute() or ".." in parts or "\\" in subfolder:
        raise CheckpointError(
            f"subfolder {subfolder!r} is not a path inside its folder, expected one such as "
            "'checkpoint-100'. Pass the folder itself as the first argument."
        )
