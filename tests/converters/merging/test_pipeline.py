"""Reading ahead, and writing behind, within a bound on the bytes in between."""

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxmix.converters.checkpoints.huggingface import Shard, Stored
from jaxmix.converters.merging import pipeline, recipe
from jaxmix.converters.merging.pipeline import ByteCounter, Copy, Run, pieces
from jaxmix.converters.merging.recipe import Prepared, Recipe

HEADER = b"header.."
COPIED = Stored("copied", "U8", (23,), Path("x"), 8, 23)
EMPTY = Stored("empty", "F32", (0, 3), Path("x"), 31, 0)
COMPUTED = Stored("computed", "F32", (5, 3), Path("x"), 31, 60)
SHARD = Shard("x", HEADER, (COPIED, EMPTY, COMPUTED))


def test_pieces_cover_the_file_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte after the header once; a tensor without numbers has no piece."""
    monkeypatch.setattr(pipeline, "STRIDE", 10)
    monkeypatch.setattr(recipe, "BLOCK", 6)
    recipes = {tensor.name: Recipe(tensor, ()) for tensor in (EMPTY, COMPUTED)}
    at, tensors = len(HEADER), list[str]()
    for piece in pieces(SHARD, recipes):
        assert piece.at == at
        if isinstance(piece, Copy):
            at += piece.end - piece.begin
            tensors.append(piece.tensor.name)
        else:
            at += piece.size
            tensors.append(piece.prepared.recipe.tensor.name)
    assert at == SHARD.size
    assert tensors == ["copied"] * 3 + ["computed"] * 3


class _Counting(ThreadPoolExecutor):
    """Counts the reads."""

    count = 0

    def submit(self, *args: Any, **options: Any) -> Any:
        self.count += 1
        return super().submit(*args, **options)


def test_rows_are_read_ahead_within_the_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two rows of 12 bytes fit into 25; copies take no memory, and all keep their order."""
    monkeypatch.setattr(pipeline, "BOUND", 25)
    file = tmp_path / "x"
    rows = np.arange(15, dtype=np.float32).reshape(5, 3)
    file.write_bytes(rows.tobytes())
    prepared = Prepared(Recipe(Stored("q", "F32", rows.shape, file, 0, 60), ()), ())
    upcoming: list[Any] = [Run(prepared, slice(i, i + 1), 12 * i) for i in range(5)]
    upcoming.insert(1, Copy(COPIED, 0, 1000, 0))
    yielded: list[Any] = []
    with _Counting(1) as reader:
        for piece, array in pipeline._read_ahead(upcoming, reader):
            assert reader.count - sum(isinstance(early, Run) for early in yielded) <= 2
            yielded.append(piece)
            if isinstance(piece, Run):
                np.testing.assert_array_equal(array, rows[piece.rows])
            else:
                assert array is None
    assert yielded == upcoming and reader.count == 5


def test_row_larger_than_the_bound_passes_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is read when nothing else is in memory, instead of never."""
    monkeypatch.setattr(pipeline, "BOUND", 1)
    (tmp_path / "x").write_bytes(bytes(60))
    prepared = Prepared(Recipe(Stored("q", "F32", (5, 3), tmp_path / "x", 0, 60), ()), ())
    runs = [Run(prepared, slice(i, i + 1), 12 * i) for i in range(5)]
    with ThreadPoolExecutor(1) as reader:
        assert [piece for piece, _ in pipeline._read_ahead(runs, reader)] == runs


def test_writes_are_counted_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that is done waits for earlier ones, and writes of no bytes are not reported."""
    monkeypatch.setattr(pipeline, "BOUND", 100)
    reports: list[tuple[int, int, str]] = []
    counter = ByteCounter(5, 50, lambda *report: reports.append(report))
    queue = pipeline._WriteQueue(counter)
    futures = [Future[int]() for _ in range(3)]
    futures[1].set_result(0)
    futures[2].set_result(7)
    for future in futures:
        queue.add(future, 10, "a")
    assert reports == [] and counter.done == 5
    futures[0].set_result(4)
    queue.drain(100)
    assert reports == [(9, 50, "a"), (16, 50, "a")] and counter.done == 16


def test_failed_write_is_raised_where_it_is_counted() -> None:
    """At the latest when the queue is emptied."""
    queue, failed = pipeline._WriteQueue(ByteCounter(0, 1, None)), Future[int]()
    failed.set_exception(OSError("full"))
    with pytest.raises(OSError, match=r"\Afull\Z"):
        queue.add(failed, 1, "a")
