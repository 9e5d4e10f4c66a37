"""Stamps of a base's files, by which a merge sees that one was changed while it was read."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from jaxmix.converters.checkpoints.huggingface import Checkpoint, Shard
from jaxmix.errors import CheckpointError, listing

__all__ = ["Stamp", "check_unchanged", "stamps_of", "watched"]


@dataclass(frozen=True)
class Stamp:
    """What is compared of a file; its numbers are too many to be read twice.

    Args:
        size: its bytes.
        modified: when it was last written, in nanoseconds.
        inode: the system's number for it: another one after it was replaced by renaming.
        header: the SHA-256 of its safetensors header.
    """

    size: int
    modified: int
    inode: int
    header: str


def stamps_of(checkpoint: Checkpoint) -> dict[Path, Stamp]:
    """Stamps a checkpoint's files, right after their headers were read.

    Args:
        checkpoint: as `read_checkpoint` gives it.

    Returns:
        A stamp for each file.
    """
    return {
        checkpoint.folder / shard.name: _stamp(checkpoint, shard) for shard in checkpoint.shards
    }


def check_unchanged(stamps: Mapping[Path, Stamp], files: Iterable[Path] | None = None) -> None:
    """Raises an error if files are no longer those that were stamped.

    Args:
        stamps: what `stamps_of` gave.
        files: those to look at; all of them by default.

    Raises:
        CheckpointError: if some changed, or are gone; all are listed.
    """
    changes = [
        f"{path}: {change}"
        for path in (stamps if files is None else dict.fromkeys(files))
        if (change := _change(path, stamps[path]))
    ]
    if changes:
        raise CheckpointError(
            f"the base was changed while it was read:{listing(changes)}\nWhat was computed from it "
            "is not used. Merge again once nothing writes to the base any more."
        )


@contextmanager
def watched(stamps: Mapping[Path, Stamp]) -> Iterator[None]:
    """Checks the files after the body, also if it fails: a change is the better reason then.

    Args:
        stamps: what `stamps_of` gave.

    Raises:
        CheckpointError: if some files changed.
    """
    try:
        yield
    except Exception:
        check_unchanged(stamps)
        raise
    check_unchanged(stamps)


def _stamp(checkpoint: Checkpoint, shard: Shard) -> Stamp:
    """The stamp of a file whose header was read a moment ago."""
    status = (checkpoint.folder / shard.name).stat()
    header = hashlib.sha256(shard.header).hexdigest()
    return Stamp(status.st_size, status.st_mtime_ns, status.st_ino, header)


def _change(path: Path, before: Stamp) -> str:
    """What is different about a file; empty if nothing is."""
    try:
        status = path.stat()
        with path.open("rb") as file:
            length = file.read(8)
            # No longer than the file: eight bytes of anything can ask for any amount of memory.
            text = file.read(min(int.from_bytes(length, "little"), status.st_size))
    except OSError as error:
        return f"it can't be read any more ({error.strerror})"
    if status.st_size != before.size:
        return f"it has {status.st_size:,} bytes, and had {before.size:,}"
    if hashlib.sha256(length + text).hexdigest() != before.header:
        return "it has another header"
    if status.st_ino != before.inode:
        return "another file has its name"
    return "it was written to" if status.st_mtime_ns != before.modified else ""
