"""Opens small files and paths without the risk of hanging or running out of memory.

An untrusted folder may contain a named pipe instead of a config, a link to a device, a sparse file
of a terabyte, or JSON with ten thousand levels. This module opens all small files. It accepts only
regular files up to a size, and JSON up to a depth.
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

# In practice the largest small files are the indexes of checkpoints, with some megabytes.
SMALL = 64 * 2**20
# The size that a file may always claim, and the largest ratio of claimed to stored size beyond it.
ALWAYS = 2**30
RATIO = 1000
# The limit of the safetensors library for a header.
_HEADER = 100_000_000
_DEPTH = 100
# The maximal number of digits of an integer. Some configs contain integers with 31 digits.
_DIGITS = 1000


def local_path(path: str | os.PathLike[str], subject: str = "path") -> Path:
    """Converts a user's path to a `Path` and expands ``~``.

    Args:
        path: The path.
        subject: The purpose of the path, for messages.

    Returns:
        The path, which need not exist.

    Raises:
        CheckpointError: If the path can't be looked up, because of circular links, an unknown user,
            a null character, or a folder without permission.
    """
    text = os.fspath(path)
    if not isinstance(text, str):
        raise CheckpointError(f"the {subject} is {text!r}, expected a string or a pathlib.Path.")
    try:
        local = Path(text).expanduser()
        try:
            is_folder = stat.S_ISDIR(local.stat().st_mode)
            if is_folder and not os.access(local, os.R_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except (FileNotFoundError, NotADirectoryError):
            pass
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise CheckpointError(
            f"the {subject} {shown(text)} can't be looked up: {reason}. Check its spelling."
        ) from error
    return local


def output_path(path: str | os.PathLike[str], subject: str = "output") -> Path:
    """Converts a user's path for an output to a `Path` and expands ``~``.

    Args:
        path: The path.
        subject: The purpose of the path, for messages.

    Returns:
        The path.

    Raises:
        CheckpointError: As for `local_path`, or if the path is an empty string, the root of the
            file system, or relative to a working directory that no longer exists.

    Example:
        >>> output_path("/")
        Traceback (most recent call last):
        ...
        jaxmix.errors.CheckpointError: the output / is the root of the file system, expected a ...
    """
    target = local_path(path, subject)
    if not os.fspath(path):
        raise CheckpointError(f"the {subject} is an empty string, expected a path. Pass one.")
    try:
        name = target.resolve().name
    except OSError as error:
        raise CheckpointError(
            f"the {subject} {path} can't be looked up: the working directory no longer exists. "
            "Change to a folder that exists, or pass an absolute path."
        ) from error
    if not name:
        raise CheckpointError(
            f"the {subject} {path} is the root of the file system, expected a folder or file in it."
        )
    return target


def shown(text: str, limit: int = 300) -> str:
    """Formats a path for a message: quoted, unprintable characters escaped, shortened if huge."""
    return repr(text if len(text) <= limit else text[: limit - 1] + "…")


def check_regular(path: Path) -> None:
    """Checks that an existing path is a regular file, since opening others may block forever.

    Args:
        path: The path, which need not exist.

    Raises:
        CheckpointError: If it is a folder, a named pipe, a device or a socket.
        OSError: If its status can't be read.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    if not stat.S_ISREG(mode):
        raise CheckpointError(f"{path} is {_type(mode)}, expected a regular file. Put one there.")


def occupied(path: Path) -> int:
    """Returns how many bytes of a file are stored on disk, fewer than its size if it is sparse.

    Windows and some file systems do not report this; then the size is returned.
    """
    status = path.stat()
    blocks = 512 * getattr(status, "st_blocks", 0)
    return min(status.st_size, blocks) if blocks else status.st_size


def check_on_disk(path: Path) -> None:
    """Checks that a file that will be read entirely is not mostly sparse.

    A sparse file of a few kilobytes can claim any size, and reading it needs memory of that size.

    Args:
        path: The file, which need not exist.

    Raises:
        CheckpointError: If it claims more than a gibibyte and over 1,000 times its stored size.
        OSError: If its status can't be read.
    """
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return
    stored = occupied(path)
    if status.st_size > max(ALWAYS, RATIO * stored):
        raise CheckpointError(
            f"{path} claims {status.st_size:,} bytes, but only {stored:,} are stored on disk. Was "
            "the download interrupted? Download or save it again."
        )


def read_small(path: Path, limit: int = SMALL) -> bytes:
    """Reads the bytes of a small file.

    Args:
        path: The file.
        limit: The maximal size in bytes.

    Returns:
        The bytes.

    Raises:
        CheckpointError: If it is not a regular file, or too large.
        OSError: If it is missing or can't be read.

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
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(
                f"{path} is {_type(status.st_mode)}, expected a regular file. Put one there."
            )
        # A sparse file may claim any size; another process may still append to the file.
        data = b"" if status.st_size > limit else file.read(status.st_size + 1)
    if status.st_size > limit:
        raise CheckpointError(
            f"{path} has {status.st_size:,} bytes, expected at most {limit:,}. Is it the right "
            "file?"
        )
    if len(data) > status.st_size:
        raise CheckpointError(f"{path} is being written. Wait until it is complete.")
    return data


def parse_json(text: str | bytes, **hooks: Any) -> Any:
    """Parses JSON with limits on its size, its depth and the digits of integers.

    Args:
        text: The JSON document, a string or UTF-8 bytes.
        **hooks: Other arguments of `json.loads`, such as ``object_pairs_hook``.

    Returns:
        The value.

    Raises:
        ValueError: If it is not JSON, or exceeds a limit.

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
    """Describes how a safetensors file is truncated.

    Args:
        path: A regular file.

    Returns:
        A message with the size found and the size expected; None if the file is complete, or
        damaged in another way.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            text = file.read(length) if length <= _HEADER else b""
        expected = 8 + length
        if start and len(start) == 8 and len(text) == length:
            tensors = parse_json(text)
            ends = [x["data_offsets"][1] for key, x in tensors.items() if key != "__metadata__"]
            expected += max(ends, default=0)
        elif size >= 8 and (length > _HEADER or not text.startswith(b"{")):
            return None
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError):
        return None
    if size == 0:
        return "it is empty. Was the download interrupted?"
    if size < expected:
        return f"it ends after {size:,} of {expected:,} bytes. Was the download interrupted?"
    return None


def _integer(text: str) -> int:
    """Parses an integer of JSON."""
    if len(text) > _DIGITS:
        raise ValueError(f"an integer has {len(text):,} digits, expected at most {_DIGITS}")
    return int(text)


def _type(mode: int) -> str:
    """Describes the type of a path that is not a regular file."""
    if stat.S_ISDIR(mode):
        return "a folder"
    if stat.S_ISFIFO(mode):
        return "a named pipe"
    return "a socket" if stat.S_ISSOCK(mode) else "a device"
