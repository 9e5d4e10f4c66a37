"""Small files and paths, opened so that nothing hangs and nothing explodes.

A folder that someone else made may hold a named pipe in the place of a config, a link to a device,
a sparse file of a terabyte, or JSON that is nested ten thousand deep. Every small file is opened
here: only regular files, only up to a size, and JSON only up to a depth.
"""

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

from jaxmix.errors import CheckpointError

__all__ = [
    "ALWAYS",
    "RATIO",
    "check_on_disk",
    "check_regular",
    "header_problem",
    "local_path",
    "occupied",
    "output_path",
    "parse_json",
    "read_small",
    "shown",
]

# The largest small files that people have are the indexes of checkpoints, of some megabytes.
SMALL = 64 * 2**20
# What a file may claim to hold: always this, else so many times what lies on disk.
ALWAYS = 2**30
RATIO = 1000
# safetensors' own limit for a header.
_HEADER = 100_000_000
_DEPTH = 100
# Digits of an integer. Configs do hold some of 31 digits.
_DIGITS = 1000


def local_path(path: str | os.PathLike[str], what: str = "path") -> Path:
    """A path as the user gave it, with ``~`` expanded.

    Args:
        path: the path.
        what: what it is for, for the message.

    Returns:
        The path. Whether something is there is not checked.

    Raises:
        CheckpointError: if it can't be looked up: links that lead round, an unknown user, a null
            character, a folder that may not be entered.
    """
    text = os.fspath(path)
    if not isinstance(text, str):
        raise CheckpointError(f"the {what} is {text!r}, expected a string or a pathlib.Path.")
    try:
        found = Path(text).expanduser()
        try:
            is_folder = stat.S_ISDIR(found.stat().st_mode)
            if is_folder and not os.access(found, os.R_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except (FileNotFoundError, NotADirectoryError):
            pass
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise CheckpointError(
            f"the {what} {shown(text)} can't be looked up: {reason}. Check its spelling."
        ) from error
    return found


def output_path(path: str | os.PathLike[str], what: str = "output") -> Path:
    """A path to write to, as the user gave it, with ``~`` expanded.

    Args:
        path: The path.
        what: What is written there, for the message.

    Returns:
        The path.

    Raises:
        CheckpointError: If nothing can be written there by name: an empty string, the root of the
            file system, a path relative to a working directory that is gone; or as `local_path`.

    Example:
        >>> output_path("/")
        Traceback (most recent call last):
        ...
        jaxmix.errors.CheckpointError: the output / has no name of its own, expected a folder or ...
    """
    place = local_path(path, what)
    if not os.fspath(path):
        raise CheckpointError(f"the {what} is an empty string, expected a path. Give one.")
    try:
        name = place.resolve().name
    except OSError as error:  # of the working directory
        raise CheckpointError(
            f"the {what} {path} can't be looked up: the working directory is gone. Change to a "
            "folder that exists, or give a whole path."
        ) from error
    if not name:
        raise CheckpointError(
            f"the {what} {path} has no name of its own, expected a folder or file in it. Give one."
        )
    return place


def shown(text: str, limit: int = 80) -> str:
    """A path for a message: quoted, its unprintable characters escaped, cut where it is long."""
    return repr(text if len(text) <= limit else text[: limit - 1] + "…")


def check_regular(path: Path) -> None:
    """Refuses what is there and no regular file, since to open it may wait forever.

    Args:
        path: the path; one that does not exist passes.

    Raises:
        CheckpointError: if it is a folder, a named pipe, a device or a socket.
        OSError: if it can't be looked at.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    if not stat.S_ISREG(mode):
        raise CheckpointError(f"{path} is {_kind(mode)}, expected a regular file. Put one there.")


def occupied(path: Path) -> int:
    """Returns how many of a file's bytes lie on disk: of a sparse one fewer than its size says.

    Some file systems do not say, nor does Windows: the size is returned then.
    """
    status = path.stat()
    blocks = 512 * getattr(status, "st_blocks", 0)
    return min(status.st_size, blocks) if blocks else status.st_size


def check_on_disk(path: Path) -> None:
    """Refuses a file that is read whole and of which nearly nothing lies on disk.

    A sparse file claims any size for a few kilobytes, and reading it takes memory of that size.

    Args:
        path: The file; one that does not exist passes.

    Raises:
        CheckpointError: If it claims more than a gibibyte, and 1,000 times what it occupies.
        OSError: If it can't be looked at.
    """
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return
    there = occupied(path)
    if status.st_size > max(ALWAYS, RATIO * there):
        raise CheckpointError(
            f"{path} claims {status.st_size:,} bytes, and {there:,} lie on disk, expected a file "
            "that is there. Was the download interrupted? Download or save it again."
        )


def read_small(path: Path, limit: int = SMALL) -> bytes:
    """The bytes of a small file.

    Args:
        path: the file.
        limit: how many bytes it may have.

    Returns:
        Its bytes.

    Raises:
        CheckpointError: if it is no regular file, or too large.
        OSError: if it is missing or can't be read.

    Example:
        >>> read_small(Path(os.devnull))
        Traceback (most recent call last):
        ...
        jaxmix.errors.CheckpointError: /dev/null is a device, expected a regular file. ...
    """
    # Without O_NONBLOCK a named pipe would wait for a writer.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    descriptor = os.open(path, flags | getattr(os, "O_BINARY", 0))
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise CheckpointError(
                f"{path} is {_kind(found.st_mode)}, expected a regular file. Put one there."
            )
        # Sparse files are as large as they say; others may have grown since.
        data = b"" if found.st_size > limit else file.read(found.st_size + 1)
    if found.st_size > limit:
        raise CheckpointError(
            f"{path} has {found.st_size:,} bytes, expected at most {limit:,}. Is it the right file?"
        )
    if len(data) > found.st_size:
        raise CheckpointError(f"{path} is being written. Wait until it is whole.")
    return data


def parse_json(text: str | bytes, **hooks: Any) -> Any:
    """The value of a text of JSON, if it is of a sane size, depth and precision.

    Args:
        text: the text, UTF-8 if it is bytes.
        **hooks: what else `json.loads` takes, such as ``object_pairs_hook``.

    Returns:
        The value.

    Raises:
        ValueError: if it is no JSON, or beyond those limits.

    Example:
        >>> parse_json("[" * 999 + "]" * 999)
        Traceback (most recent call last):
        ...
        ValueError: it is nested more than 100 deep

    Source: https://www.rfc-editor.org/rfc/rfc8259, section 9.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8")
    if len(text) > _HEADER:
        raise ValueError(f"it has {len(text):,} characters, expected at most {_HEADER:,}")
    try:
        value = json.loads(text, parse_int=_integer, **hooks)
    except RecursionError as error:
        raise ValueError(f"it is nested more than {_DEPTH} deep") from error
    level = [value]
    for _ in range(_DEPTH):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return value
    raise ValueError(f"it is nested more than {_DEPTH} deep")


def header_problem(path: Path) -> str | None:
    """Why a safetensors file is not whole, if that is because it ends too early.

    Args:
        path: the file, a regular one.

    Returns:
        How many bytes of how many are there; None if it is whole, or damaged in another way.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            text = file.read(length) if length <= _HEADER else b""
        whole = 8 + length
        if start and len(start) == 8 and len(text) == length:
            tensors = parse_json(text)
            ends = [x["data_offsets"][1] for key, x in tensors.items() if key != "__metadata__"]
            whole += max(ends, default=0)
        elif size >= 8 and (length > _HEADER or not text.startswith(b"{")):
            return None
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError):
        return None
    if size == 0:
        return "it is empty. Was the download interrupted?"
    if size < whole:
        return f"it ends after {size:,} of {whole:,} bytes. Was the download interrupted?"
    return None


def _integer(text: str) -> int:
    """An integer of JSON."""
    if len(text) > _DIGITS:
        raise ValueError(f"an integer has {len(text):,} digits, expected at most {_DIGITS}")
    return int(text)


def _kind(mode: int) -> str:
    """What something is that is no regular file."""
    if stat.S_ISDIR(mode):
        return "a folder"
    if stat.S_ISFIFO(mode):
        return "a named pipe"
    return "a socket" if stat.S_ISSOCK(mode) else "a device"
