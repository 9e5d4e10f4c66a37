"""Reads, computes and writes at the same time, with a bound on the bytes in between.

One thread reads the next runs of rows, this thread computes, and two others write, copy and wait
for the disk. The queues between them are bounded in bytes, whatever the size of the model; a run
larger than the bound passes through alone.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jaxmix.converters.checkpoints.huggingface import Shard, Stored
from jaxmix.converters.merging.journal import new_file
from jaxmix.converters.merging.recipe import Prepared, Recipe
from jaxmix.converters.merging.rounding import Loss, total_loss
from jaxmix.converters.merging.staged_output import StagedOutput
from jaxmix.converters.merging.stamps import Stamp, check_unchanged
from jaxmix.converters.merging.tensor_io import (
    STRIDE,
    copy_bytes,
    read_rows,
    row_bytes,
    write_bytes,
)

__all__ = ["ByteCounter", "Progress", "write_shards"]

# Called with the bytes done, the total bytes and the name of the current shard.
Progress = Callable[[int, int, str], None]

# The most bytes that may wait to be computed; as many may wait to be written.
BOUND = 16 << 20
# The most pieces that may wait: copies take no memory, but a shard may have many.
_FUTURES = 64


@dataclass(frozen=True, eq=False)
class Copy:
    """A run of bytes to copy unchanged.

    Args:
        tensor: The tensor to which they belong.
        begin: The first byte, counted from the tensor's first.
        end: The byte after the last one.
        at: The position of the first byte in the output file.
    """

    tensor: Stored
    begin: int
    end: int
    at: int


@dataclass(frozen=True, eq=False)
class Run:
    """A run of rows to compute.

    Args:
        prepared: The tensor to which they belong.
        rows: The rows, with start and stop.
        at: The position of their first byte in the output file.
    """

    prepared: Prepared
    rows: slice
    at: int

    @property
    def size(self) -> int:
        """The bytes of these rows in the base."""
        tensor = self.prepared.recipe.tensor
        return (self.rows.stop - self.rows.start) * row_bytes(tensor)


Piece = Copy | Run


def write_shards(
    shards: Mapping[int, Shard],
    recipes: Mapping[str, Recipe],
    output: StagedOutput,
    counter: "ByteCounter",
    stamps: Mapping[Path, Stamp],
) -> None:
    """Writes shards in order, and moves each into the new output once it is complete.

    Args:
        shards: The shards to write by number.
        recipes: How to compute the tensors that change.
        output: The staged output.
        counter: Counts and reports the bytes done.
        stamps: Stamps of the base's files, which must not change before a shard is complete.

    Raises:
        OSError: If the system refuses to read or write.
        CheckpointError: If the base's files do not match their headers.
    """
    with _threads() as (reader, writer):
        queue = _WriteQueue(counter)
        for number, shard in shards.items():
            part = output.part_path(number)
            with new_file(part) as file:
                file.write(shard.header)
            queue.add(writer.submit(len, shard.header), 0, shard.name)
            losses: dict[str, list[Loss]] = {}
            writes: list[Future[int]] = []
            for piece, rows in _read_ahead(pieces(shard, recipes), reader):
                if isinstance(piece, Copy):
                    source = (piece.tensor, piece.begin, piece.end)
                    future, size = writer.submit(copy_bytes, *source, part, piece.at), 0
                else:
                    recipe = piece.prepared.recipe
                    result = piece.prepared.compute(rows, piece.rows)
                    if result.loss and recipe.shares:
                        losses.setdefault(recipe.tensor.name, []).append(result.loss)
                    data = result.array.reshape(-1).view("u1").data
                    future, size = writer.submit(write_bytes, data, part, piece.at), data.nbytes
                    del result, data
                writes.append(future)
                queue.add(future, size, shard.name)
                del piece, rows, future
            sums = {name: asdict(total_loss(parts)) for name, parts in losses.items()}
            record = {"losses": sums}
            # This blocks one of the two writers until the other has written the rest.
            end = writer.submit(_finish, writes, output, number, shard, record, stamps)
            queue.add(end, 0, shard.name)
        queue.drain(0)


def pieces(shard: Shard, recipes: Mapping[str, Recipe]) -> Iterator[Piece]:
    """Yields what follows a shard's header, in order: runs to copy and runs to compute."""
    at = len(shard.header)
    for tensor in shard.tensors:
        recipe = recipes.get(tensor.name)
        if recipe is None:
            for begin in range(0, tensor.size, STRIDE):
                yield Copy(tensor, begin, min(begin + STRIDE, tensor.size), at + begin)
        elif tensor.size:
            prepared = recipe.prepare()
            for rows in prepared.runs:
                yield Run(prepared, rows, at + rows.start * row_bytes(tensor))
        at += tensor.size


def _finish(
    writes: list["Future[int]"],
    output: StagedOutput,
    number: int,
    shard: Shard,
    record: Mapping[str, Any],
    stamps: Mapping[Path, Stamp],
) -> int:
    """Waits until a shard is on the disk, and moves it into the new output."""
    for future in writes:
        future.result()
    check_unchanged(stamps)
    output.finish_shard(number, shard, record)
    return 0


def _read_ahead(
    upcoming: Iterable[Piece], reader: ThreadPoolExecutor
) -> Iterator[tuple[Piece, Any]]:
    """Yields the pieces, runs with their rows, which are read while earlier ones are computed."""
    ahead: deque[tuple[Piece, Future[Any] | None]] = deque()
    size = 0
    for piece in upcoming:
        future = None
        if isinstance(piece, Run):
            while ahead and size + piece.size > BOUND:
                early, read = ahead.popleft()
                size -= early.size if isinstance(early, Run) else 0
                yield early, read and read.result()
            size += piece.size
            future = reader.submit(read_rows, piece.prepared.recipe.tensor, piece.rows)
        ahead.append((piece, future))
        del piece, future
    while ahead:
        early, read = ahead.popleft()
        yield early, read and read.result()


class ByteCounter:
    """Counts the bytes done, and reports them to a progress function."""

    def __init__(self, done: int, size: int, progress: Progress | None):
        self.done, self.size = done, size
        self._progress = progress

    def add(self, count: int, shard: str) -> None:
        """Adds bytes that are done."""
        self.done += count
        if self._progress and count:
            self._progress(self.done, self.size, shard)


class _WriteQueue:
    """The writes that are pending, in order, with at most `BOUND` bytes of memory."""

    def __init__(self, counter: ByteCounter):
        self._counter = counter
        self._pending: deque[tuple[Future[int], int, str]] = deque()
        self._size = 0

    def add(self, future: "Future[int]", size: int, shard: str) -> None:
        """Adds a write; waits while the queue holds too many bytes."""
        self._pending.append((future, size, shard))
        self._size += size
        self.drain(BOUND)

    def drain(self, size: int) -> None:
        """Waits until at most ``size`` bytes are pending; counts the writes that are done."""
        while self._pending and (
            size == 0
            or self._size > size
            or len(self._pending) > _FUTURES
            or self._pending[0][0].done()
        ):
            future, count, shard = self._pending.popleft()
            self._counter.add(future.result(), shard)
            self._size -= count


@contextmanager
def _threads() -> Iterator[tuple[ThreadPoolExecutor, ThreadPoolExecutor]]:
    """Yields a reader and two writers; on an error, cancels what has not begun."""
    reader = ThreadPoolExecutor(1, "jaxmix-read")
    writer = ThreadPoolExecutor(2, "jaxmix-write")
    try:
        yield reader, writer
    finally:
        for executor in (reader, writer):
            executor.shutdown(wait=True, cancel_futures=True)
