"""Weights that are parts of leaves, or that leaves hold with axes or rows in another order."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix.placement.part_places import UnmappedError, memory_shape, part_place
from jaxmix.placement.regions import WHOLE, Piece, Region

LEAF = np.arange(24 * 3, dtype=np.float32).reshape(24, 3)
STACK = LEAF.reshape(2, 12, 3)
HALVES = LEAF.reshape(3, 4, 2, 3).swapaxes(1, 2).reshape(24, 3)  # of three heads


@pytest.mark.parametrize(
    ("leaf", "at", "options", "expected"),
    [
        (LEAF, Region(part=1, parts=3), {}, LEAF[8:16]),
        (LEAF, Region(part=1, parts=2, alternates=True), {}, LEAF[1::2]),
        (LEAF, Region(part=2, parts=3, sizes=(4, 4, 16)), {}, LEAF[8:]),
        (STACK, Region(part=1, parts=2, axis=1), {}, STACK[:, 6:]),
        (STACK, Region(1, 0, 2), {}, STACK[1, :6]),
        (LEAF, WHOLE, {"is_transposed": True}, LEAF.T),
        (LEAF, WHOLE, {"heads": 3}, HALVES),
        (HALVES, WHOLE, {"heads": -3}, LEAF),
        (LEAF[:, 0], WHOLE, {"heads": 3}, HALVES[:, 0]),
        (
            np.stack([LEAF, LEAF + 100]),
            Region(part=1, parts=1),
            {"heads": 3},
            np.stack([HALVES, HALVES + 100]),
        ),
        (
            np.concatenate([HALVES, LEAF]),
            Region(part=1, parts=2),
            {"heads": 3},
            HALVES,
        ),
    ],
)
def test_places(
    leaf: np.ndarray, at: Region, options: dict[str, int], expected: np.ndarray
) -> None:
    """A place reads the weight from the leaf, and writes it back to the same elements."""
    place = part_place("w", leaf.shape, at, **options)
    assert np.array_equal(np.asarray(place.get(jnp.asarray(leaf))), expected)
    written = np.asarray(place.put(jnp.zeros_like(leaf), jnp.asarray(expected)))
    assert np.array_equal(np.asarray(place.get(jnp.asarray(written))), expected)
    assert np.array_equal(written[written != 0], leaf[written != 0])


@pytest.mark.parametrize(
    ("at", "options", "message"),
    [
        (Region(part=1, parts=5), {}, "w (24, 3) can't be split into 5 equal parts"),
        (Region(parts=2, sizes=(4, 4)), {}, "w (24, 3) can't be split into parts of 4, 4 rows"),
        (
            Region(parts=2, sizes=(0, 0)),
            {},
            "w (24, 3) can't be split into 2 parts without their sizes, which the model's "
            "config.json states: pass it as names=",
        ),
        (
            WHOLE,
            {"heads": 5},
            "w has 24 rows, which can't be divided into 5 heads with two halves",
        ),
        (
            WHOLE,
            {"heads": 3, "is_transposed": True},
            "w is transposed and its rows are reordered: unsupported",
        ),
    ],
)
def test_leaves_without_the_part_are_refused(
    at: Region, options: dict[str, int], message: str
) -> None:
    """The error says why the leaf has no such part."""
    with pytest.raises(UnmappedError) as caught:
        part_place("w", (24, 3), at, **options)
    assert str(caught.value) == message


def test_memory_shape() -> None:
    """A transposed piece has its last two axes swapped in memory."""
    assert memory_shape(Piece("w", is_transposed=True), (4, 2, 3)) == (4, 3, 2)
    assert memory_shape(Piece("w"), (2, 3)) == (2, 3)
