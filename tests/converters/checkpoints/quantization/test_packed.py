"""Integers of a few bits, and what the readers collect."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxmix.converters.checkpoints.quantization.packed import (
    Packed,
    Problem,
    Readout,
    Source,
    Transposed,
    add_modules,
    stored_fields,
    unpack_bits,
)

from .stored import stored


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("dtype", [np.int32, np.uint32, np.uint8])
def test_bits_are_unpacked_from_the_lowest(bits: int, dtype: Any) -> None:
    """A row of words is one long number, whatever the words' size and sign."""
    row = 12 if dtype == np.uint8 else 3
    words = np.random.default_rng(bits).integers(0, 256, (2, 12), np.uint8).view(dtype)
    assert words.shape == (2, row)
    unpacked = unpack_bits(words, bits)
    assert unpacked.shape == (2, 96 // bits) and unpacked.dtype == np.uint8
    for integers, line in zip(unpacked.tolist(), words, strict=True):
        number = int.from_bytes(line.tobytes(), "little")
        assert integers == [number >> bits * i & (1 << bits) - 1 for i in range(96 // bits)]


def test_columns_in_memory_are_unpacked(tmp_path: Path) -> None:
    """A transposed array has no contiguous rows."""
    words = np.array([[0x21, 0x43], [0x65, 0x87]], np.uint8)
    assert unpack_bits(words.T, 4).tolist() == [[1, 2, 5, 6], [3, 4, 7, 8]]


class Plain(Packed):
    """A matrix that is stored as it is."""

    def rows(self, part: slice) -> np.ndarray:
        """See `Packed`."""
        return self.main.read()[part]


def plain(folder: Path) -> Plain:
    """Returns a matrix (2, 3)."""
    main = stored(folder, {"p.codes": np.arange(6, dtype=np.float32).reshape(2, 3)})["p.codes"]
    return Plain(*stored_fields("p.weight", (2, 3), main), main, "plain")


def test_rows_of_a_transpose_are_columns(tmp_path: Path) -> None:
    """Either has the size of bfloat16, in which it is written."""
    transposed = Transposed.of(plain(tmp_path))
    assert (transposed.shape, transposed.dtype, transposed.size) == ((3, 2), "BF16", 12)
    assert transposed.read().tolist() == [[0, 3], [1, 4], [2, 5]]
    assert transposed.rows(slice(1, 2)).tolist() == [[1, 4]]


def test_parts_of_unreadable_weights_are_parts(tmp_path: Path) -> None:
    """Every module with the first part is read; tensors without a module are not."""
    weight = plain(tmp_path)
    names = ["a.codes", "a.scale", "p.codes", "codes", "b.scale", "p.codes.x"]
    source, readout = Source(dict.fromkeys(names, weight.main), {}), Readout()

    def read(module: str, source: Source) -> Packed | Problem:
        return weight if module == "p" else Problem(f"{module}: damaged")

    add_modules(source, readout, ("codes", "scale"), read)
    assert readout.packed == {"p.weight": weight}
    assert readout.problems == ["a: damaged"]
    assert readout.parts == {"a.codes", "a.scale", "p.codes", "p.scale"}
