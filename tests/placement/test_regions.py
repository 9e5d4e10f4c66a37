"""Regions of tensors: their rows, which contains which, and sizes that a shape determines."""

import numpy as np
import pytest

from jaxmix.placement.regions import WHOLE, Piece, Region, has_swapped_halves, swapped_halves


@pytest.mark.parametrize(
    ("region", "total", "rows"),
    [
        (WHOLE, 6, slice(0, 6)),
        (Region(part=2, parts=3), 12, slice(8, 12)),
        (Region(part=1, parts=3, sizes=(2, 3, 4)), 9, slice(2, 5)),
        (Region(part=1, parts=3, sizes=(1, 2, 1), is_ratio=True), 12, slice(3, 9)),
        (Region(part=1, parts=2, alternates=True), 6, slice(1, 6, 2)),
        (Region(part=1, parts=3), 8, None),
        (Region(part=1, parts=2, sizes=(2, 3)), 6, None),
        (Region(part=1, parts=2, sizes=(0, 0)), 6, None),
        (Region(part=1, parts=2, sizes=(1, 2), is_ratio=True), 7, None),
    ],
)
def test_rows_of_a_part(region: Region, total: int, rows: slice | None) -> None:
    """Sizes that do not add up to the total give None."""
    assert region.rows(total) == rows


@pytest.mark.parametrize("sizes", [(), (2, 4, 6)])
@pytest.mark.parametrize("alternates", [False, True])
def test_parts_cover_the_tensor_once(sizes: tuple[int, ...], alternates: bool) -> None:
    parts = [Region(-1, part, 3, 0, alternates, sizes).rows(12) for part in range(3)]
    rows = np.concatenate([np.arange(12)[part] for part in parts if part is not None])
    assert sorted(rows.tolist()) == list(range(12))


@pytest.mark.parametrize(
    ("outer", "inner", "expected"),
    [
        (WHOLE, Region(2, 1, 3), True),
        (Region(2), Region(2, 1, 3), True),
        (Region(2), Region(1, 1, 3), False),
        (Region(2), WHOLE, False),
        (Region(part=1, parts=3), Region(2, 1, 3), True),
        (Region(part=1, parts=3), Region(2, 2, 3), False),
        (Region(part=1, parts=3), Region(part=1, parts=3), True),
        (Region(part=0, parts=2), Region(part=0, parts=4), False),
        (Region(2, 1, 3), Region(part=1, parts=3), False),
    ],
)
def test_contained_regions(outer: Region, inner: Region, expected: bool) -> None:
    """A region contains itself, parts of its expert, and the same part of each expert."""
    assert outer.contains(inner) is expected


RATIO = Region(part=1, parts=3, sizes=(0, 0, 0), is_ratio=True)


@pytest.mark.parametrize(
    ("region", "shape", "sizes"),
    [
        (RATIO, (8, 4), (4, 2, 2)),
        (RATIO, (12, 4), (4, 4, 4)),
        (RATIO, (7, 4), (0, 0, 0)),  # k and v would have 3 rows together
        (RATIO, (4, 4), (0, 0, 0)),  # k and v would have no rows
        (RATIO, (8,), (0, 0, 0)),
        (Region(part=1, parts=3, sizes=(1, 1, 2), is_ratio=True), (8, 4), (1, 1, 2)),
        (Region(part=1, parts=3), (8, 4), ()),
    ],
)
def test_sizes_that_the_shape_determines(
    region: Region, shape: tuple[int, ...], sizes: tuple[int, ...]
) -> None:
    """The first part is square, and the other two share the remaining rows equally."""
    fitted = region.fitted(shape)
    assert fitted.sizes == sizes
    assert (fitted == region) is (sizes == region.sizes)
    if fitted != region:
        assert fitted.rows(shape[0]) == slice(sizes[0], sizes[0] + sizes[1])


def test_halves_are_swapped() -> None:
    """Each half on disk is the other half in memory, so the swap is its own inverse."""
    numbers = np.arange(6)
    moved = np.empty_like(numbers)
    for piece in swapped_halves("norm.weight"):
        disk, memory = piece.disk.rows(6), piece.memory.rows(6)
        assert disk is not None and memory is not None and piece.name == "norm.weight"
        moved[memory] = numbers[disk]
    assert moved.tolist() == [3, 4, 5, 0, 1, 2]


def test_swap_depends_on_the_ratio_of_the_shape() -> None:
    """Two rows per column have swapped halves; other shapes keep their order."""
    piece = Piece("norm.bias", swap_ratio=2)
    assert piece.fitted((8, 4)) == swapped_halves("norm.bias")
    assert piece.fitted((12, 4)) == (Piece("norm.bias"),)
    for shape in (None, (8,)):
        (unknown,) = piece.fitted(shape)
        assert unknown.problem == "an order of rows that the weight's shape determines"


def test_fitted_piece_has_fitted_sizes() -> None:
    piece = Piece("k.weight", disk=RATIO)
    (fitted,) = piece.fitted((8, 4))
    assert fitted == Piece("k.weight", disk=RATIO.fitted((8, 4))) != piece
    assert piece.fitted(None) == (piece,)


def test_swapped_halves_are_recognized() -> None:
    halves = swapped_halves("w")
    assert has_swapped_halves(halves)
    assert has_swapped_halves((Piece("w", swap_ratio=2),))
    assert not has_swapped_halves(halves[::-1])
    assert not has_swapped_halves((Piece("w"),))
    assert not has_swapped_halves((halves[0], Piece("v", halves[1].disk, halves[1].memory)))
