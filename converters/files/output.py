"""Folders that are written beside their place, and take it only once they are whole."""

import errno
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from jaxmix.errors import CheckpointError, listing, option
from jaxmix.untrusted.files import local_path, output_path

__all__ = [
    "HINTS",
    "check_apart",
    "checked_file",
    "checked_output",
    "is_checkpoint_file",
    "new_folder",
]

# What makes a folder a checkpoint, which --force may replace. Anything else might be a home folder.
_MARKS = ("config.json", "model.safetensors", "model.safetensors.index.json")
# What transformers, its tokenizers and its processors write into such a folder, and what hubs add.
_CHECKPOINT_FILES = re.compile(
    r"model(\.\w+)?(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?"
    r"|(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab"
    r"|preprocessor_config|processor_config|video_preprocessor_config|chat_template)\.json"
    r"|tokenizer\.model|spiece\.model|sentencepiece\.bpe\.model|vocab\.txt|merges\.txt"
    r"|chat_template\.jinja|README\.md|LICENSE(\.\w+)?|NOTICE|USE_POLICY\.md|\.gitattributes"
)
# What file managers leave behind.
_LITTER = (".DS_Store", "Thumbs.db", "desktop.ini")
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
    replaces: Callable[[str], bool] | None = None,
) -> Path:
    """The place for a new folder, as far as can be told before it is written.

    Args:
        out: where the folder should come to stand.
        inputs: folders that are read from, which it must not replace, nor be a part of.
        force: whether a checkpoint that stands there may be replaced.
        size: the bytes to be written.
        marks: files one of which tells that a folder is what may be replaced.
        replaces: whether a file, by its path in the folder, is one that such a folder has; those of
            a checkpoint by default. A folder with any other file is not replaced.

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
        check_replaceable(place, replaces or is_checkpoint_file)
        if Path.cwd().is_relative_to(place):
            raise CheckpointError(
                f"the output {out} holds the working directory, which would be gone once it is "
                "replaced. Change to another folder, or give another one."
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


def is_checkpoint_file(name: str) -> bool:
    """Whether a file, by its path in the folder, is one that every checkpoint may have.

    Args:
        name: the path, with slashes.

    Returns:
        Whether it is.

    Example:
        >>> is_checkpoint_file("model-00001-of-00002.safetensors"), is_checkpoint_file("thesis.tex")
        (True, False)
    """
    return _CHECKPOINT_FILES.fullmatch(name) is not None


def check_replaceable(place: Path, replaces: Callable[[str], bool]) -> None:
    """Refuses to replace a folder that holds files of another kind.

    Args:
        place: the folder.
        replaces: whether a file may go, by its path in the folder.

    Raises:
        CheckpointError: if there are other files, or folders that can't be looked into; the first
            ones are named.
    """
    others = [
        name
        for name in _contents(place)
        if not replaces(name) and name.rsplit("/", 1)[-1] not in _LITTER
    ]
    if others:
        raise CheckpointError(
            f"the output {place} is not replaced, for it also holds what is not written there:"
            f"{listing(others)}\nMove these files, or give another folder."
        )


def _contents(folder: Path) -> Iterator[str]:
    """The paths in a folder of its files, links and empty folders, these with a slash."""

    def refuse(error: OSError) -> None:
        raise CheckpointError(
            f"the output {folder} is not replaced, for not all of it can be listed: {error}."
        ) from error

    for above, folders, files in os.walk(folder, onerror=refuse):
        here = Path(above).relative_to(folder)
        links = [name for name in folders if (Path(above) / name).is_symlink()]
        yield from sorted((here / name).as_posix() for name in (*files, *links))
        if not files and not folders and above != str(folder):
            yield f"{here.as_posix()}/"


def _apart(
    out: str | os.PathLike[str], inputs: Iterable[str | os.PathLike[str]], what: str
) -> Path:
    """The output's place, if it neither is nor holds an input, nor lies in one."""
    check_apart(out, inputs, "the output", f" Give a {what} apart from it.")
    return output_path(out).resolve()


def check_apart(
    out: str | os.PathLike[str],
    inputs: Iterable[str | os.PathLike[str]],
    what: str,
    advice: str = " Give another name for the output.",
) -> None:
    """Refuses a place to write to that is an input, holds one, or lies in one.

    Args:
        out: the place.
        inputs: files and folders that are read from.
        what: what to call the place, before its name.
        advice: what to do about it.

    Raises:
        CheckpointError: if they touch.
    """
    place = output_path(out).resolve()
    for told in inputs:
        source = local_path(told).resolve()
        if place == source or place.is_relative_to(source) or source.is_relative_to(place):
            how = "is" if place == source else "lies in"
            how = "holds" if place != source and source.is_relative_to(place) else how
            raise CheckpointError(f"{what} {out} {how} {told}, which is read from.{advice}")


def _check_room(out: str | os.PathLike[str], place: Path, size: int) -> None:
    """Whether the disk has room."""
    parent = next(folder for folder in place.parents if folder.exists())
    if parent.is_dir() and (free := shutil.disk_usage(parent).free) < size:
        raise CheckpointError(
            f"the output {out} needs {size:,} bytes, and {parent} has {free:,} left. "
            f"{HINTS[errno.ENOSPC]}"
        )


@contextmanager
def new_folder(
    place: Path, *, force: bool = False, replaces: Callable[[str], bool] | None = None
) -> Iterator[Path]:
    """A folder to be filled, which is renamed to its place at the end, or removed if that fails.

    Args:
        place: where it should come to stand, as `checked_output` gives it.
        force: whether to replace what stands there. It is moved aside at the end, and removed once
            the new one is in its place.
        replaces: which files it may hold, as `checked_output` takes it.

    Yields:
        A new folder beside the place.

    Raises:
        CheckpointError: if the system refuses to write, in the body too.
    """
    beside = place.with_name(f"{place.name}.partial-{secrets.token_hex(4)}")
    missing = [folder for folder in beside.parents if not os.path.lexists(folder)]
    try:
        beside.mkdir(parents=True)
        yield beside
        if force and place.exists():
            check_replaceable(place, replaces or is_checkpoint_file)
        _put(beside, place, force)
    except OSError as error:
        hint = HINTS.get(error.errno or 0, "")
        raise CheckpointError(
            f"the output {place} could not be written: {error}. What was written is removed again, "
            f"and all else is as it was. {hint}".rstrip()
        ) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        for folder in missing:  # the innermost first; one that holds something stays
            with suppress(OSError):
                folder.rmdir()


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
