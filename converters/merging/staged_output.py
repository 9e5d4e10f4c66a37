"""The folder ``OUT.partial``, in which an output is written until it is complete.

It contains everything that a later run needs to know:

- ``journal.json``: that the folder belongs to a merge, and to which output; locked by the process
  that writes;
- ``process``: the number of that process;
- ``merge.json``: a description of the merge;
- ``new``: the output; its shards are moved here from ``parts`` once they are complete;
- ``whole/*.json``: for each complete shard, its size and rounding error;
- ``sealed.json``: written when everything is complete; its number identifies the new one of two
  folders;
- ``old``: the folder that the output replaces, where the system can't exchange two folders at once.
"""

import os
import shutil
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxmix.converters.checkpoints.huggingface import Shard
from jaxmix.converters.merging.exchange import exchange_paths
from jaxmix.converters.merging.journal import differences, read_json, write_json
from jaxmix.converters.merging.rounding import Loss
from jaxmix.converters.merging.tensor_io import fsync
from jaxmix.errors import CheckpointError, option

__all__ = ["JOURNAL", "PROCESS", "StagedOutput"]

JOURNAL = "journal.json"
PROCESS = "process"
# Bytes read at a time for a checksum: they stay in the processor's cache.
_CHECKED = 256 << 10


@dataclass(frozen=True)
class StagedOutput:
    """An output, and the folder next to it in which it is written.

    Args:
        path: The final path of the output, with links resolved.
        is_file: Whether the output is a single file.
    """

    path: Path
    is_file: bool = False

    @property
    def folder(self) -> Path:
        """The folder in which the output is written."""
        return self.path.with_name(f"{self.path.name}.partial")

    @property
    def new(self) -> Path:
        """The new output within the folder."""
        return self.folder / "new"

    def shard_path(self, shard: Shard) -> Path:
        """Returns the path of a complete shard in the new output."""
        return self.new if self.is_file else self.new / shard.name

    def part_path(self, number: int) -> Path:
        """Returns the path to which the shard with this number is written."""
        return self.folder / "parts" / f"{number}.safetensors"

    def record_path(self, number: int) -> Path:
        """Returns the path of a complete shard's record."""
        return self.folder / "whole" / f"{number}.json"

    # ------------------------------------------------------------ the state left by an earlier run

    @property
    def journal(self) -> Any:
        """The description of the merge in this folder; None if no merge has begun."""
        return read_json(self.folder / "merge.json")

    @property
    def is_published(self) -> bool:
        """Whether the output was moved into place, so that only the folder is left to delete."""
        seal = self._seal
        return type(seal) is int and self.path.exists() and self.path.stat().st_ino == seal

    @property
    def _seal(self) -> Any:
        return read_json(self.folder / "sealed.json")

    @property
    def _has_new(self) -> bool:
        """Whether ``new`` is the new output: after an exchange the old one has this path."""
        return self.new.exists() and self.new.stat().st_ino == self._seal

    def recover(self) -> None:
        """Completes a move that was killed between the two renames that some systems need."""
        old = self.folder / "old"
        if old.exists() and not os.path.lexists(self.path):
            (self.new if self._has_new else old).rename(self.path)

    def read_records(self, count: int) -> list[Mapping[str, Any]]:
        """Returns the records of all shards, which must be complete.

        Raises:
            CheckpointError: If a record is missing or was changed.
        """
        records = [self._read_record(number) for number in range(count)]
        if None in records:
            raise CheckpointError(
                f"{self.record_path(records.index(None))} is not what a merge wrote. Use "
                f"{option('force')} without {option('resume')} to start over."
            )
        return [record for record in records if record is not None]

    def _read_record(self, number: int) -> Mapping[str, Any] | None:
        """Returns the record of a shard; None if it is missing or invalid."""
        record = read_json(self.record_path(number))
        try:
            for fields in record["losses"].values():
                Loss.of(fields)
        except (TypeError, KeyError, AttributeError, ValueError):
            return None
        return record

    def complete_shards(self, shards: tuple[Shard, ...]) -> dict[int, Mapping[str, Any]]:
        """Returns the records of the complete shards by number."""
        records = {}
        for number, shard in enumerate(shards):
            record, target = self._read_record(number), self.shard_path(shard)
            if record is not None and target.is_file() and not target.is_symlink():
                if target.stat().st_size == shard.size == record.get("size"):
                    records[number] = record
        return records

    def begin(
        self, journal: Mapping[str, Any], shards: tuple[Shard, ...], *, resume: bool, force: bool
    ) -> dict[int, Mapping[str, Any]]:
        """Prepares the folder for writing: keeps the shards to resume from, deletes the rest.

        Args:
            journal: The description of this merge.
            shards: The shards to write.
            resume: Whether to keep complete shards.
            force: Whether to start over.

        Returns:
            The records of the complete shards by number; empty when starting over.

        Raises:
            CheckpointError: If there are complete shards and neither option is set, or if they
                belong to another merge.
        """
        before = self.journal
        if not isinstance(before, dict):  # damaged or edited: the earlier merge is unknown
            before = {}
        changed = differences(journal, before) if before else []
        done = self.complete_shards(shards) if before and not changed else {}
        if resume and changed:
            raise CheckpointError(
                f"{self.folder} belongs to another merge, which can't be resumed. Different: "
                f"{', '.join(changed)}. Merge with the same arguments as before, or use "
                f"{option('force')} without {option('resume')} to start over."
            )
        if not resume and not force and (done or (changed and any(self.folder.glob("whole/*")))):
            contents = (
                f"{len(done)} of {len(shards)} shards of this merge" if done else "another merge"
            )
            resuming = f"Use {option('resume')} to continue, " if done else "Use "
            raise CheckpointError(
                f"{self.folder} holds {contents}, which was interrupted. {resuming}"
                f"{option('force')} to start over, or delete the folder."
            )
        if resume:
            done = self._intact(done, shards)
        if not resume or not done:
            self.clear()
            done = {}
        parts = self.folder / "parts"
        if parts.is_dir():  # of shards that were not finished
            shutil.rmtree(parts)
        for folder in ("parts", "whole", *(() if self.is_file else ("new",))):
            (self.folder / folder).mkdir(exist_ok=True)
        (self.folder / "sealed.json").unlink(missing_ok=True)
        write_json(self.folder / "merge.json", journal)
        return done

    def _intact(
        self, done: Mapping[int, Mapping[str, Any]], shards: tuple[Shard, ...]
    ) -> dict[int, Mapping[str, Any]]:
        """Returns the records of the shards that are unchanged on disk; deletes the others."""
        intact = {}
        for number, record in done.items():
            target = self.shard_path(shards[number])
            if record.get("crc32") == _checksum(target):
                intact[number] = record
            else:
                self.record_path(number).unlink()
                target.unlink()
        return intact

    # ------------------------------------------------------------ writing

    def finish_shard(self, number: int, shard: Shard, record: Mapping[str, Any]) -> None:
        """Moves a shard that was written into the new output and writes its record."""
        part, target = self.part_path(number), self.shard_path(shard)
        fsync(part)
        target.parent.mkdir(parents=True, exist_ok=True)
        full_record = {"size": shard.size, "crc32": _checksum(part), **record}
        part.rename(target)
        fsync(target.parent)
        write_json(self.record_path(number), full_record)

    def publish(self, *, force: bool, check: Callable[[], object]) -> None:
        """Moves the complete output into place, and deletes what it replaces.

        Args:
            force: Whether an existing output may be replaced.
            check: Raises an error if the output must not be moved into place after all.
        """
        for folder, _, files in os.walk(self.new):
            for name in files:
                if not name.endswith(".safetensors"):  # shards were synced when they were finished
                    fsync(Path(folder, name))
            fsync(Path(folder))
        check()
        write_json(self.folder / "sealed.json", self.new.stat().st_ino)
        if self.is_file and force:
            self.new.replace(self.path)
        elif force and self.path.exists():
            self._swap()
        elif os.path.lexists(self.path) and (self.is_file or any(self.path.iterdir())):
            raise FileExistsError(f"{self.path} was created while the merge ran")
        else:
            self.new.rename(self.path)
        fsync(self.path.parent)
        self.delete()

    def _swap(self) -> None:
        """Exchanges the new folder and the one that it replaces."""
        old = self.folder / "old"
        if exchange_paths(self.new, self.path):
            self.new.rename(old)
            return
        self.path.rename(old)
        try:
            self.new.rename(self.path)
        except BaseException:
            old.rename(self.path)
            raise

    def clear(self) -> None:
        """Deletes everything that a merge has written to the folder, which stays locked."""
        for path in self.folder.iterdir():
            if path.name not in (JOURNAL, PROCESS):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def delete(self) -> None:
        """Deletes the folder. If that fails, the remaining files do no harm."""
        try:
            # The description goes first: a kill after that leaves nothing to resume from.
            # The journal goes last: without it the folder would not be recognized as a merge's.
            (self.folder / "merge.json").unlink(missing_ok=True)
            self.clear()
            for name in (PROCESS, JOURNAL):
                (self.folder / name).unlink(missing_ok=True)
            self.folder.rmdir()
        except OSError:
            pass


def _checksum(path: Path) -> int:
    """Returns a file's CRC-32, which finds disk errors several times faster than SHA-256."""
    value, buffer = 0, memoryview(bytearray(_CHECKED))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            value = zlib.crc32(buffer[:count], value)
    return value
