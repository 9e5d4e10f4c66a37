"""Stamps of a base's files, with which a merge detects changes while it reads them."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from jaxmix.converters.checkpoints.huggingface import Checkpoint, Shard
from jaxmix.errors import CheckpointError, listing

__all__ = ["Stamp", "check_unchanged", "expect_unchanged", "stamps_of"]


@dataclass(frozen=True)
class Stamp:
    """The properties of a file that are compared; its contents are too large to read twice.

    Args:
        size: The number of bytes.
        modified: The time of the last write, in nanoseconds.
        inode: The system's number of the file, which changes when another file replaces it.
        header: The SHA-256 of the safetensors header.
    """

    size: int
    modified: int
    inode: int
    header: str


def stamps_of(checkpoint: Checkpoint) -> dict[Path, Stamp]:
    """Returns the stamps of a checkpoint's files, to be taken right after reading their headers.

    Args:
        checkpoint: The checkpoint, as `read_checkpoint` returns it.

    Returns:
        A stamp for each file.
    """
    return {
        checkpoint.folder / shard.name: _stamp(checkpoint, shard) for shard in checkpoint.shards
    }


def check_unchanged(stamps: Mapping[Path, Stamp], files: Iterable[Path] | None = None) -> None:
    """Raises an error if files have changed since they were stamped.

    Args:
        stamps: The result of `stamps_of`.
        files: The files to check; all of them by default.

    Raises:
        CheckpointError: If files changed or are missing; all of them are listed.
    """
    changes = [
        f"{path}: {change}"
        for path in (stamps if files is None else dict.fromkeys(files))
        if (change := _change(path, stamps[path]))
    ]
    if changes:
        raise CheckpointError(
            f"the base changed while it was being read:{listing(changes)}\nThe output computed "
            "from it is not used. Merge again when no other program writes to the base."
        )


@contextmanager
def expect_unchanged(stamps: Mapping[Path, Stamp]) -> Iterator[None]:
    """Checks the files after the body, even if it fails: a change explains the failure better.

    Args:
        stamps: The result of `stamps_of`.

    Raises:
        CheckpointError: If files changed.
    """
    try:
        yield
    except Exception:
        check_unchanged(stamps)
        raise
    check_unchanged(stamps)


def _stamp(checkpoint: Checkpoint, shard: Shard) -> Stamp:
    """Returns the stamp of a file whose header was just read."""
    status = (checkpoint.folder / shard.name).stat()
    header = hashlib.sha256(shard.header).hexdigest()
    return Stamp(status.st_size, status.st_mtime_ns, status.st_ino, header)


def _change(path: Path, before: Stamp) -> str:
    """Describes how a file has changed; empty if it has not."""
    try:
        status = path.stat()
        with path.open("rb") as file:
            length = file.read(8)
            # At most the file's size: a corrupt length could request any amount of memory.
            text = file.read(min(int.from_bytes(length, "little"), status.st_size))
    except OSError as error:
        return f"it can no longer be read ({error.strerror})"
    if status.st_size != before.size:
        return f"it has {status.st_size:,} bytes, before {before.size:,}"
    if hashlib.sha256(length + text).hexdigest() != before.header:
        return "its header changed"
    if status.st_ino != before.inode:
        return "it was replaced by another file"
    return "it was written to" if status.st_mtime_ns != before.modified else ""
