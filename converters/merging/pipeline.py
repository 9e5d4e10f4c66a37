"""Reading, computing and writing at the same time, with a bound on the bytes in between.

One thread reads the runs of rows that come next, this one computes, two others write, copy and
wait for the disk. What waits between them is bounded by bytes, whatever the size of the model; a
run that is larger than the bound goes through alone.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jaxmix.converters.checkpoints.huggingface import Shard, Stored
from jaxmix.converters.merging.files import STRIDE, copied, read_rows, row_bytes, written
from jaxmix.converters.merging.journal import new_file
from jaxmix.converters.merging.place import Place
from jaxmix.converters.merging.recipe import Prepared, Recipe
from jaxmix.converters.merging.rounding import Loss, total
from jaxmix.converters.merging.stamps import Stamp, check_unchanged

__all__ = ["Progress", "write_shards"]

# Bytes done, bytes in all, the shard at hand.
Progress = Callable[[int, int, str], None]

# Bytes that may wait to be computed, and as many to be written.
BOUND = 32 << 20
# What is copied takes no memory, but should not be listed as a whole either.
_FUTURES = 64


@dataclass(frozen=True, eq=False)
class Copy:
    """A run of bytes that nobody changes."""

    tensor: Stored
    begin: int
    end: int
    at: int


@dataclass(frozen=True, eq=False)
class Run:
    """A run of rows to be computed."""

    prepared: Prepared
    rows: slice
    at: int

    @property
    def size(self) -> int:
        """Its bytes in the base."""
        tensor = self.prepared.recipe.tensor
        return (self.rows.stop - self.rows.start) * row_bytes(tensor)


Piece = Copy | Run


def write_shards(
    shards: Mapping[int, Shard],
    recipes: Mapping[str, Recipe],
    place: Place,
    told: "Told",
    stamps: Mapping[Path, Stamp],
) -> None:
    """Writes shards, in order, and puts each among the whole ones once it is.

    Args:
        shards: those to write, by their numbers.
        recipes: how the tensors are made that change.
        place: where they grow.
        told: whom to tell of the bytes.
        stamps: of the base's files, which must not change before a shard is whole.

    Raises:
        OSError: if the system refuses.
        CheckpointError: if the base is not what its headers say.
    """
    with _lanes() as (reader, writer):
        waiting = _Waiting(told)
        for number, shard in shards.items():
            part = place.part(number)
            with new_file(part) as opened:
                opened.write(shard.header)
            waiting.add(writer.submit(len, shard.header), 0, shard.name)
            losses: dict[str, list[Loss]] = {}
            mine: list[Future[int]] = []
            for piece, rows in _read_ahead(pieces(shard, recipes), reader):
                if isinstance(piece, Copy):
                    words = (piece.tensor, piece.begin, piece.end, part, piece.at)
                    future, size = writer.submit(copied, *words), 0
                else:
                    made = piece.prepared.made(rows, piece.rows)
                    if made.loss and piece.prepared.recipe.shares:
                        losses.setdefault(piece.prepared.recipe.tensor.name, []).append(made.loss)
                    data = made.array.reshape(-1).view("u1").data
                    future, size = writer.submit(written, data, part, piece.at), data.nbytes
                    del made, data
                mine.append(future)
                waiting.add(future, size, shard.name)
                del piece, rows, future
            record = {"losses": {name: asdict(total(all_)) for name, all_ in losses.items()}}
            # It waits in a thread: one of the two is enough for what is still to be written.
            end = writer.submit(_finish, mine, place, number, shard, record, stamps)
            waiting.add(end, 0, shard.name)
        waiting.until(0)


def pieces(shard: Shard, recipes: Mapping[str, Recipe]) -> Iterator[Piece]:
    """A shard's bytes behind its header, in order: what is copied, and what is computed."""
    at = len(shard.header)
    for tensor in shard.tensors:
        recipe = recipes.get(tensor.name)
        if recipe is None:
            for begin in range(0, tensor.size, STRIDE):
                yield Copy(tensor, begin, min(begin + STRIDE, tensor.size), at + begin)
        elif tensor.size:
            prepared = recipe.prepared()
            for rows in prepared.runs:
                yield Run(prepared, rows, at + rows.start * row_bytes(tensor))
        at += tensor.size


def _finish(
    writes: list["Future[int]"],
    place: Place,
    number: int,
    shard: Shard,
    record: Mapping[str, Any],
    stamps: Mapping[Path, Stamp],
) -> int:
    """Waits for a shard's bytes, and for the disk."""
    for future in writes:
        future.result()
    check_unchanged(stamps)
    place.finished(number, shard, record)
    return 0


def _read_ahead(coming: Iterable[Piece], reader: ThreadPoolExecutor) -> Iterator[tuple[Piece, Any]]:
    """The pieces, each run with its rows, which were read while others were computed."""
    ahead: deque[tuple[Piece, Future[Any] | None]] = deque()
    size = 0
    for piece in coming:
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


class Told:
    """Counts bytes, and tells whoever wants to know."""

    def __init__(self, done: int, size: int, progress: Progress | None):
        self.done, self.size = done, size
        self._progress = progress

    def more(self, count: int, shard: str) -> None:
        """That many bytes more are done."""
        self.done += count
        if self._progress and count:
            self._progress(self.done, self.size, shard)


class _Waiting:
    """What was handed to the writers, in order, no more than `BOUND` bytes of memory at once."""

    def __init__(self, told: Told):
        self._told = told
        self._all: deque[tuple[Future[int], int, str]] = deque()
        self._size = 0

    def add(self, future: "Future[int]", size: int, shard: str) -> None:
        """One more; waits where that would be too much."""
        self._all.append((future, size, shard))
        self._size += size
        self.until(BOUND)

    def until(self, size: int) -> None:
        """Waits until no more bytes than these are left; what is done already is told."""
        while self._all and (
            size == 0 or self._size > size or len(self._all) > _FUTURES or self._all[0][0].done()
        ):
            future, held, shard = self._all.popleft()
            self._told.more(future.result(), shard)
            self._size -= held


@contextmanager
def _lanes() -> Iterator[tuple[ThreadPoolExecutor, ThreadPoolExecutor]]:
    """A reader and two writers; on an error what has not begun is given up."""
    reader = ThreadPoolExecutor(1, "jaxmix-read")
    writer = ThreadPoolExecutor(2, "jaxmix-write")
    try:
        yield reader, writer
    finally:
        for lane in (reader, writer):
            lane.shutdown(wait=True, cancel_futures=True)
