"""Where an adapter lies, and of what format it is: a folder, a file, or a repository on the hub."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jaxmix.adapter import Adapter
from jaxmix.converters.adapters.alone import checked_filename, chosen_file, is_copy_of
from jaxmix.converters.adapters.beside import names_in, unread_error, weights_beside
from jaxmix.converters.adapters.downloading import download
from jaxmix.converters.adapters.format import Format, is_folder_file, named, recognised
from jaxmix.converters.files.hub import is_hub_id
from jaxmix.converters.files.near import near_paths
from jaxmix.errors import CheckpointError, UnsupportedError, option
from jaxmix.mixing import Mix
from jaxmix.untrusted.files import local_path

__all__ = ["Found", "find", "find_on_hub", "is_hub_id"]


@dataclass(frozen=True)
class Found:
    """An adapter that is there and not yet read.

    Args:
        path: its folder or file.
        format: what reads it.
        default: its name if none is given.
        source: where it came from, as it may be told to others.
        beside: the names of other files of weights in its folder, which the format does not read by
            itself, and that are not ignored.
    """

    path: Path
    format: Format
    default: str
    source: str
    beside: tuple[str, ...] = ()

    def read(self, name: str | None, strength: Any, /, **options: Any) -> Adapter | Mix:
        """The adapter.

        Raises:
            UnsupportedError: if the format's reader does not take one of the options.
            CheckpointError: if there are weights beside the adapter that it does not read.
        """
        if unknown := sorted(set(options) - set(self.format.options)):
            takes = ", ".join(self.format.options) or "no options"
            raise UnsupportedError(
                f"{self.source} is of the format {self.format.name!r}, whose reader takes {takes}; "
                f"found {', '.join(unknown)}. Leave it out, or force another with "
                f"{option('format', '…')}."
            )
        if self.beside and not self.format.takes_beside:
            raise unread_error(self.source, dict.fromkeys(self.beside, ""))
        if self.format.takes_beside:
            options["beside"] = self.beside
        given = name or ("" if self.format.named_within else self.default)
        adapter = self.format.read(self.path, given, strength, **options)
        if self.format.named_within:  # its parts say by themselves where they came from
            return adapter
        return replace(adapter, source=self.source)


def find(
    formats: Sequence[Format],
    path_or_hub_id: str | os.PathLike[str],
    *,
    subfolder: str | None = None,
    filename: str | None = None,
    revision: str | None = None,
    format: str | None = None,
    ignore: Sequence[str] = (),
) -> Found:
    """Looks up what `jaxmix.load` would read, and fetches it if it is on the hub.

    Args:
        formats: the table, as in `jaxmix.converters.adapters.loading`.
        path_or_hub_id: a folder, a file, or the id of a repository on the hub.
        subfolder: where in the folder or repository the adapter lies.
        filename: which file there holds it, where there are several.
        revision: the branch, tag or commit on the hub.
        format: the format, by name; recognised by default.
        ignore: names and globs of files of weights beside the adapter that are to be left out.

    Returns:
        What was found.

    Raises:
        CheckpointError: if nothing is there, or nothing of a known format.
        UnsupportedError: if there is no format of that name.
    """
    text = os.fspath(path_or_hub_id)
    expected = f"{formats[-1].what}, or 'owner/name'"
    forced = None if format is None else named(formats, format)
    inner, name = checked_filename(filename) if filename else (None, None)
    if subfolder is not None:
        _check_inside(subfolder)
    path = local_path(text, "adapter")
    is_folder, is_there = path.is_dir(), path.exists()
    if is_folder or (is_there and subfolder is None and name is None):
        below = "/".join(part for part in (subfolder, inner, name) if part)
        place = path / below if below else path
        if name and not place.is_file():
            raise CheckpointError(
                f"{place.parent} has no {name}, found {', '.join(names_in(place.parent)[:8])}. "
                "Give the name of a file that it has."
            )
        return _found_here(formats, forced, place, text, below, ignore)
    if not is_there and is_hub_id(text):
        return find_on_hub(
            formats,
            text,
            subfolder=subfolder,
            filename=filename,
            revision=revision,
            format=format,
            ignore=ignore,
        )
    no_inside = "subfolder" if subfolder else "file in it"
    what = (
        f"is a file, which has no {no_inside}" if is_there else "is neither a folder nor a hub id"
    )
    near = "" if is_there else near_paths(text)
    raise CheckpointError(f"{_cut(text)} {what}.{near}\nExpected {expected}.")


def _found_here(
    formats: Sequence[Format],
    forced: Format | None,
    place: Path,
    text: str,
    below: str,
    ignore: Sequence[str],
) -> Found:
    """What lies in a folder or a file on this machine."""
    is_read: Callable[[str], bool] | None = None
    if place.is_dir() and (forced.is_alone if forced else not _is_known(formats, place)):
        # One file may be the adapter, though the folder is none.
        lone = chosen_file(names_in(place), str(place), _is_known_file(formats, forced, place))
        if lone is not None:
            place, is_read = place / lone, is_copy_of(lone)
    one = forced or recognised(formats, place, text)
    is_read = is_read or one.is_read
    folder = place.parent if place.is_file() else place
    beside = () if is_read is None else weights_beside(names_in(folder), is_read, ignore)
    source = _told(text, below)
    if place.is_file() and one.is_read is not None:  # A file of a folder, which has the name.
        source = _told(text, below.rpartition("/")[0]) if below else _told(str(Path(text).parent))
        return Found(place, one, folder.resolve().name, source, beside)
    default = place.resolve().name if place.is_dir() else place.stem
    if place.is_file() and is_read is not None:  # The one file of a folder, likewise.
        default = folder.resolve().name
    return Found(place, one, default, source, beside)


def _is_known(formats: Sequence[Format], place: Path) -> bool:
    return any(one.recognises(place) for one in formats)


def _is_known_file(
    formats: Sequence[Format], forced: Format | None, folder: Path
) -> Callable[[str], bool]:
    """From the name of a file in a folder to whether it holds an adapter by itself."""
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
) -> Found:
    """Fetches what `jaxmix.load` would read of a repository on the hub, whatever lies here.

    Args:
        formats: the table.
        hub_id: ``owner/name``.
        subfolder: where in the repository the adapter lies.
        filename: which file there holds it, where there are several.
        revision: the branch, tag or commit.
        format: the format, by name; by default that of which the files are there.
        ignore: as in `find`.

    Returns:
        What was found.

    Raises:
        CheckpointError: if it can't be had.
        UnsupportedError: if there is no format of that name, or it is not looked for on the hub.
    """
    if subfolder is not None:
        _check_inside(subfolder)
    forced = None if format is None else named(formats, format)
    inner, name = checked_filename(filename) if filename else (None, None)
    subfolder = "/".join(part for part in (subfolder, inner) if part) or None
    # A folder's own file says which folder is meant.
    if name and any(name in one.files for one in formats if one is (forced or one)):
        name = None
    looked_for = [one for one in formats[::-1] if one.files and one is (forced or one)]
    if not looked_for and not (forced and forced.is_alone) and not name:
        raise UnsupportedError(
            f"{hub_id}: the format {format!r} is one of single files, which are not looked for on "
            f"the hub. Download the file with `hf download {hub_id}`, and give its path."
        )
    got = download(hub_id, subfolder, revision, looked_for, name=name, ignore=ignore)
    one = got.format or forced or recognised(formats, got.path, f"{hub_id}: {got.path.name}")
    place = f"{hub_id}/{subfolder}".rstrip("/") if subfolder else hub_id
    at = f"@{revision}" if revision else ""
    source = f"{place}/{name}" if name else place
    default = Path(name).stem if name else place.rsplit("/", 1)[-1]
    return Found(got.path, one, default, source + at, got.beside)


def _cut(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:79] + "…")


def _told(text: str, below: str = "") -> str:
    """A path for others to read: of one that is not relative the last part, for it is private."""
    path = Path(text)
    is_private = path.is_absolute() or text.startswith("~")
    shown = path.expanduser().resolve().name if is_private else path.as_posix()
    return f"{shown}/{below}" if below else shown


def _check_inside(subfolder: str) -> None:
    """Refuses a subfolder that leaves its folder; where links lead is their owner's business."""
    parts = Path(subfolder).parts
    if not parts or Path(subfolder).is_absolute() or ".." in parts or "\\" in subfolder:
        raise CheckpointError(
            f"subfolder {subfolder!r} is no path inside its folder, expected one such as "
            "'checkpoint-100'. Give the folder itself as the first argument."
        )
