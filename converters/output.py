"""Folders that are written beside their place, and take it only once they are whole."""

import errno
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from jaxmix.errors import CheckpointError, option
from jaxmix.files import local_path

__all__ = ["HINTS", "checked_file", "checked_output", "new_folder"]

# What makes a folder a checkpoint, which --force may replace. Anything else might be a home folder.
_MARKS = ("config.json", "model.safetensors", "model.safetensors.index.json")
HINTS = {
    errno.ENOSPC: "Make room, or choose another disk.",
    errno.EDQUOT: "Make room, or choose another disk.",
    errno.EFBIG: "Choose a place that takes files of this size.",
    errno.EACCES: "Choose a folder in which you may write.",
    errno.EPERM: "Choose a folder in which you may write.",
    errno.EROFS: "Choose a folder in which you may write.",
}


def checked_output(
    out: str | os.PathLike[str],
    inputs: Iterable[str | os.PathLike[str]],
    *,
    force: bool = False,
    size: int = 0,
    marks: Sequence[str] = _MARKS,
) -> Path:
    """The place for a new folder, as far as can be told before it is written.

    Args:
        out: where the folder should come to stand.
        inputs: folders that are read from, which it must not replace, nor be a part of.
        force: whether a checkpoint that stands there may be replaced.
        size: the bytes to be written.
        marks: files one of which tells that a folder is what may be replaced.

    Returns:
        The place, links resolved.

    Raises:
        CheckpointError: if the place is taken, touches an input, or its disk has too little room.
    """
    place = _apart(out, inputs, "folder")
    if place.is_dir():
        if not force:
            raise CheckpointError(
                f"the output {out} exists. Give another folder, or say {option('force')} to "
                "replace it; it then stays until the new one is whole."
            )
        if any(place.iterdir()) and not any((place / mark).exists() for mark in marks):
            raise CheckpointError(
                f"the output {out} holds no checkpoint, expected one of {', '.join(marks)} in "
                "what is to be replaced. Give another folder, or empty this one."
            )
    elif place.exists():
        raise CheckpointError(f"the output {out} is a file. Give a folder's name.")
    _check_room(out, place, size)
    return place


def checked_file(
    out: str | os.PathLike[str],
    inputs: Iterable[str | os.PathLike[str]],
    *,
    force: bool = False,
    size: int = 0,
) -> Path:
    """The place for a new safetensors file, as far as can be told before it is written.

    Args:
        out: where the file should come to stand.
        inputs: files that are read from.
        force: whether a file that stands there may be replaced.
        size: the bytes to be written.

    Returns:
        The place, links resolved.

    Raises:
        CheckpointError: if the place is taken, is an input, or its disk has too little room.
    """
    place = _apart(out, inputs, "file")
    if place.is_dir():
        raise CheckpointError(
            f"the output {out} is a folder, and the base is a file. Give a file's name."
        )
    if place.suffix != ".safetensors":
        raise CheckpointError(
            f"the output {out} is to be a safetensors file, as the base is. Give a name that ends "
            "in .safetensors."
        )
    if place.exists() and not force:
        raise CheckpointError(
            f"the output {out} exists. Give another name, or say {option('force')} to replace "
            "it; it then stays until the new one is whole."
        )
    _check_room(out, place, size)
    return place


def _apart(
    out: str | os.PathLike[str], inputs: Iterable[str | os.PathLike[str]], what: str
) -> Path:
    """The output's place, if it neither is nor holds an input, nor lies in one."""
    place = local_path(out, "output").resolve()
    for told in inputs:
        source = local_path(told).resolve()
        if place == source or place.is_relative_to(source) or source.is_relative_to(place):
            how = "is" if place == source else "lies in"
            how = "holds" if place != source and source.is_relative_to(place) else how
            raise CheckpointError(
                f"the output {out} {how} {told}, which is read from. Give a {what} apart from it."
            )
    return place


def _check_room(out: str | os.PathLike[str], place: Path, size: int) -> None:
    """Whether the disk has room."""
    parent = next(folder for folder in place.parents if folder.exists())
    if parent.is_dir() and (free := shutil.disk_usage(parent).free) < size:
        raise CheckpointError(
            f"the output {out} needs {size:,} bytes, and {parent} has {free:,} left. "
            f"{HINTS[errno.ENOSPC]}"
        )


@contextmanager
def new_folder(place: Path, *, force: bool = False) -> Iterator[Path]:
    """A folder to be filled, which is renamed to its place at the end, or removed if that fails.

    Args:
        place: where it should come to stand, as `checked_output` gives it.
        force: whether to replace what stands there. It is moved aside at the end, and removed once
            the new one is in its place.

    Yields:
        A new folder beside the place.

    Raises:
        CheckpointError: if the system refuses to write, in the body too.
    """
    beside = place.with_name(f"{place.name}.partial-{secrets.token_hex(4)}")
    try:
        beside.mkdir(parents=True)
        yield beside
        _put(beside, place, force)
    except OSError as error:
        hint = HINTS.get(error.errno or 0, "")
        raise CheckpointError(
            f"the output {place} could not be written: {error}. What was written is removed again, "
            f"and all else is as it was. {hint}".rstrip()
        ) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _put(new: Path, place: Path, force: bool) -> None:
    """Renames a folder to its place; what stands there goes, but not before."""
    if not (force and place.exists()):
        new.rename(place)
        return
    aside = place.with_name(f"{place.name}.replaced-{secrets.token_hex(4)}")
    place.rename(aside)
    try:
        new.rename(place)
    except BaseException:
        aside.rename(place)
        raise
    shutil.rmtree(aside, ignore_errors=True)
