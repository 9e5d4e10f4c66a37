"""Where an adapter lies, and of what format it is: a folder, a file, or a repository on the hub."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jaxmix.adapter import Adapter
from jaxmix.converters.format import Format, named, recognised
from jaxmix.converters.hub import download
from jaxmix.errors import CheckpointError, UnsupportedError, option
from jaxmix.mix import Mix

__all__ = ["Found", "find", "find_on_hub", "is_hub_id"]

_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)


@dataclass(frozen=True)
class Found:
    """An adapter that is there and not yet read.

    Args:
        path: its folder or file.
        format: what reads it.
        default: its name if none is given.
        source: where it came from, as it may be told to others.
    """

    path: Path
    format: Format
    default: str
    source: str

    def read(self, name: str | None, strength: Any, /, **options: Any) -> Adapter | Mix:
        """The adapter.

        Raises:
            UnsupportedError: if the format's reader does not take one of the options.
        """
        if unknown := sorted(set(options) - set(self.format.options)):
            takes = ", ".join(self.format.options) or "no options"
            raise UnsupportedError(
                f"{self.source} is of the format {self.format.name!r}, whose reader takes {takes}; "
                f"found {', '.join(unknown)}. Leave it out, or force another with "
                f"{option('format', '…')}."
            )
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
    revision: str | None = None,
    format: str | None = None,
) -> Found:
    """Looks up what `jaxmix.load` would read, and fetches it if it is on the hub.

    Args:
        formats: the table, as in `jaxmix.converters.loading`.
        path_or_hub_id: a folder, a file, or the id of a repository on the hub.
        subfolder: where in the folder or repository the adapter lies.
        revision: the branch, tag or commit on the hub.
        format: the format, by name; recognised by default.

    Returns:
        What was found.

    Raises:
        CheckpointError: if nothing is there, or nothing of a known format.
        UnsupportedError: if there is no format of that name.
    """
    text = os.fspath(path_or_hub_id)
    expected = f"{formats[-1].what}, or 'owner/name'"
    forced = None if format is None else named(formats, format)
    if subfolder is not None:
        _check_inside(subfolder)
    try:
        path = Path(text).expanduser()
        is_folder, is_there = path.is_dir(), path.exists()
    except (OSError, RuntimeError) as error:  # too long a name, a closed folder, no such ~user
        raise CheckpointError(
            f"{_cut(text)} can't be looked up: {error}.\nExpected {expected}."
        ) from error
    if is_folder or (is_there and subfolder is None):
        place = path / subfolder if subfolder else path
        one = forced or recognised(formats, place, text)
        default = place.resolve().name if is_folder else place.stem
        return Found(place, one, default, _told(text, subfolder))
    if not is_there and is_hub_id(text):
        return find_on_hub(formats, text, subfolder=subfolder, revision=revision, format=format)
    what = "is a file, which has no subfolder" if is_there else "is neither a folder nor a hub id"
    raise CheckpointError(f"{_cut(text)} {what}.\nExpected {expected}.")


def is_hub_id(text: str) -> bool:
    """Whether a text has the form of a hub id, ``owner/name``.

    Args:
        text: the text.

    Returns:
        Whether it has.
    """
    return _HUB_ID.fullmatch(text) is not None


def find_on_hub(
    formats: Sequence[Format],
    hub_id: str,
    *,
    subfolder: str | None = None,
    revision: str | None = None,
    format: str | None = None,
) -> Found:
    """Fetches what `jaxmix.load` would read of a repository on the hub, whatever lies here.

    Args:
        formats: the table.
        hub_id: ``owner/name``.
        subfolder: where in the repository the adapter lies.
        revision: the branch, tag or commit.
        format: the format, by name; by default that of which the files are there.

    Returns:
        What was found.

    Raises:
        CheckpointError: if it can't be had.
        UnsupportedError: if there is no format of that name, or it is not looked for on the hub.
    """
    if subfolder is not None:
        _check_inside(subfolder)
    forced = None if format is None else named(formats, format)
    looked_for = [one for one in formats[::-1] if one.files and one is (forced or one)]
    if not looked_for:
        raise UnsupportedError(
            f"{hub_id}: the format {format!r} is one of single files, which are not looked for on "
            f"the hub. Download the file with `hf download {hub_id}`, and give its path."
        )
    folder, one = download(hub_id, subfolder, revision, looked_for)
    place = f"{hub_id}/{subfolder}".rstrip("/") if subfolder else hub_id
    at = f"@{revision}" if revision else ""
    return Found(folder, one, place.rsplit("/", 1)[-1], place + at)


def _cut(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:79] + "…")


def _told(text: str, subfolder: str | None) -> str:
    """A path for others to read: of one that is not relative the last part, for it is private."""
    path = Path(text)
    is_private = path.is_absolute() or text.startswith("~")
    shown = path.expanduser().resolve().name if is_private else path.as_posix()
    return f"{shown}/{subfolder}" if subfolder else shown


def _check_inside(subfolder: str) -> None:
    """Refuses a subfolder that leaves its folder; where links lead is their owner's business."""
    parts = Path(subfolder).parts
    if not parts or Path(subfolder).is_absolute() or ".." in parts or "\\" in subfolder:
        raise CheckpointError(
            f"subfolder {subfolder!r} is no path inside its folder, expected one such as "
            "'checkpoint-100'. Give the folder itself as the first argument."
        )
