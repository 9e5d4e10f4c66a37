"""Where an output grows until it is whole: ``OUT.partial``, with all that a later run must know.

It holds

- ``journal.json``: that it is a merge's, and of which output; locked by the process at work;
- ``process``: the number of that process;
- ``merge.json``: what is being merged;
- ``new``: the output; its shards come in once they are whole, from ``parts``;
- ``whole/*.json``: for each shard that is, its size and what the rounding did;
- ``sealed.json``: written when all is; its number says which of two folders the new one is;
- ``old``: what stood in the output's place, where the system can't exchange two folders at once.
"""

import os
import shutil
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxmix.converters.checkpoints.huggingface import Shard
from jaxmix.converters.merging.exchange import exchanged
from jaxmix.converters.merging.files import synced
from jaxmix.converters.merging.journal import differences, read_json, write_json
from jaxmix.converters.merging.rounding import Loss
from jaxmix.errors import CheckpointError, option

__all__ = ["JOURNAL", "PROCESS", "Place"]

JOURNAL = "journal.json"
PROCESS = "process"


@dataclass(frozen=True)
class Place:
    """An output, and the folder beside it in which it grows.

    Args:
        out: where it comes to stand, links resolved.
        is_file: whether it is one file.
    """

    out: Path
    is_file: bool = False

    @property
    def beside(self) -> Path:
        """The folder in which it grows."""
        return self.out.with_name(f"{self.out.name}.partial")

    @property
    def new(self) -> Path:
        """The output while it grows."""
        return self.beside / "new"

    def target(self, shard: Shard) -> Path:
        """Where a whole shard lies in the new output."""
        return self.new if self.is_file else self.new / shard.name

    def part(self, number: int) -> Path:
        """Where a shard is written, by its number."""
        return self.beside / "parts" / f"{number}.safetensors"

    def record(self, number: int) -> Path:
        """What is written of a shard once it is whole."""
        return self.beside / "whole" / f"{number}.json"

    # ------------------------------------------------------------ what was there before

    @property
    def merge(self) -> Any:
        """What is being merged here; None if no merge has begun."""
        return read_json(self.beside / "merge.json")

    @property
    def is_placed(self) -> bool:
        """Whether the output of the merge here stands in its place: the folder may go."""
        seal = self._seal
        return type(seal) is int and self.out.exists() and self.out.stat().st_ino == seal

    @property
    def _seal(self) -> Any:
        return read_json(self.beside / "sealed.json")

    @property
    def _has_new(self) -> bool:
        """Whether the new output is here still: after an exchange the old one lies in its place."""
        return self.new.exists() and self.new.stat().st_ino == self._seal

    def mended(self) -> None:
        """Ends what a run was killed in, between the two renamings that some systems need."""
        old = self.beside / "old"
        if old.exists() and not os.path.lexists(self.out):
            (self.new if self._has_new else old).rename(self.out)

    def records(self, count: int) -> list[Mapping[str, Any]]:
        """What was written of the shards, all of which are whole.

        Raises:
            CheckpointError: if one is not there, or was changed.
        """
        found = [self._read(number) for number in range(count)]
        if None in found:
            raise CheckpointError(
                f"{self.record(found.index(None))} is not what a merge wrote. Say "
                f"{option('force')} without {option('resume')} to begin anew."
            )
        return [record for record in found if record is not None]

    def _read(self, number: int) -> Mapping[str, Any] | None:
        """The record of a shard; None if there is none, or something else."""
        record = read_json(self.record(number))
        try:
            for told in record["losses"].values():
                Loss.of(told)
        except (TypeError, KeyError, AttributeError, ValueError):
            return None
        return record

    def whole(self, shards: tuple[Shard, ...]) -> dict[int, Mapping[str, Any]]:
        """The records of the shards that are whole, by their numbers."""
        found = {}
        for number, shard in enumerate(shards):
            record, target = self._read(number), self.target(shard)
            if record is not None and target.is_file() and not target.is_symlink():
                if target.stat().st_size == shard.size == record.get("size"):
                    found[number] = record
        return found

    def begun(
        self, journal: Mapping[str, Any], shards: tuple[Shard, ...], *, resume: bool, force: bool
    ) -> dict[int, Mapping[str, Any]]:
        """The shards to go on from; all else that lies there is removed.

        Args:
            journal: what is being merged.
            shards: those to be written.
            resume: whether to go on from them.
            force: whether to begin anew.

        Returns:
            The records of the whole shards, by number; empty where it begins anew.

        Raises:
            CheckpointError: if there are whole shards and neither was said, or they are of another
                merge.
        """
        before = self.merge
        if not isinstance(before, dict):  # damaged, or edited: nothing is known of what was merged
            before = {}
        unlike = differences(journal, before) if before else []
        done = self.whole(shards) if before and not unlike else {}
        if resume and unlike:
            raise CheckpointError(
                f"{self.beside} is of another merge, so that there is nothing to go on from. "
                f"Different: {', '.join(unlike)}. Merge what it began with, or say "
                f"{option('force')} without {option('resume')} to begin anew."
            )
        if not resume and not force and (done or (unlike and any(self.beside.glob("whole/*")))):
            what = f"{len(done)} of {len(shards)} shards of this merge" if done else "another merge"
            goes_on = f"{option('resume')} goes on from there, " if done else ""
            raise CheckpointError(
                f"{self.beside} holds {what}, broken off. {goes_on}{option('force')} begins "
                "anew, or remove it."
            )
        if resume:
            done = self._intact(done, shards)
        if not resume or not done:
            self.emptied()
            done = {}
        parts = self.beside / "parts"
        if parts.is_dir():  # of shards that were not finished
            shutil.rmtree(parts)
        for folder in ("parts", "whole", *(() if self.is_file else ("new",))):
            (self.beside / folder).mkdir(exist_ok=True)
        (self.beside / "sealed.json").unlink(missing_ok=True)
        write_json(self.beside / "merge.json", journal)
        return done

    def _intact(
        self, done: Mapping[int, Mapping[str, Any]], shards: tuple[Shard, ...]
    ) -> dict[int, Mapping[str, Any]]:
        """The records of the shards that hold what was written; the others are made anew."""
        intact = {}
        for number, record in done.items():
            target = self.target(shards[number])
            if record.get("crc32") == _checksum(target):
                intact[number] = record
            else:
                self.record(number).unlink()
                target.unlink()
        return intact

    # ------------------------------------------------------------ on the way

    def finished(self, number: int, shard: Shard, record: Mapping[str, Any]) -> None:
        """Puts a shard that was written in among the whole ones."""
        part, target = self.part(number), self.target(shard)
        synced(part)
        target.parent.mkdir(parents=True, exist_ok=True)
        written = {"size": shard.size, "crc32": _checksum(part), **record}
        part.rename(target)
        synced(target.parent)
        write_json(self.record(number), written)

    def put(self, *, force: bool, check: Callable[[], object]) -> None:
        """Brings the new output, which is whole, to its place; what stood there is gone then.

        Args:
            force: whether something that stands there may be replaced.
            check: raises an error if it must not be put there after all.
        """
        for folder, _, files in os.walk(self.new):
            for name in files:
                if not name.endswith(".safetensors"):  # these were synced one by one
                    synced(Path(folder, name))
            synced(Path(folder))
        check()
        write_json(self.beside / "sealed.json", self.new.stat().st_ino)
        if self.is_file and force:
            self.new.replace(self.out)
        elif force and self.out.exists():
            self._exchanged()
        elif os.path.lexists(self.out) and (self.is_file or any(self.out.iterdir())):
            raise FileExistsError(f"{self.out} has appeared meanwhile")
        else:
            self.new.rename(self.out)
        synced(self.out.parent)
        self.removed()

    def _exchanged(self) -> None:
        """Puts the new folder in the place of another one."""
        old = self.beside / "old"
        if exchanged(self.new, self.out):
            self.new.rename(old)
            return
        self.out.rename(old)
        try:
            self.new.rename(self.out)
        except BaseException:
            old.rename(self.out)
            raise

    def emptied(self) -> None:
        """Removes all that a merge has written here; the folder stays locked."""
        for path in self.beside.iterdir():
            if path.name not in (JOURNAL, PROCESS):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def removed(self) -> None:
        """Removes the folder; if that fails, what is left does no harm."""
        try:
            # What tells of whole shards goes first: a kill in between leaves nothing to go on from.
            # The journal goes last: without it the folder would be a stranger's.
            (self.beside / "merge.json").unlink(missing_ok=True)
            self.emptied()
            for name in (PROCESS, JOURNAL):
                (self.beside / name).unlink(missing_ok=True)
            self.beside.rmdir()
        except OSError:
            pass


def _checksum(path: Path) -> int:
    """The CRC-32 of a file: it sees what a disk may do to it, at several times SHA-256's speed."""
    value = 0
    with path.open("rb", buffering=0) as file:
        while data := file.read(8 << 20):
            value = zlib.crc32(data, value)
    return value
