"""Tensors in memory that are assembled from several leaves, or from a part of one."""

import numpy as np
import pytest

from jaxmix.errors import LayoutError
from jaxmix.placement.assembly import assembled, assembled_shape
from jaxmix.placement.canonical import Holding
from jaxmix.placement.regions import Piece, Region

from ..messages import full_text

LEAF = np.arange(24 * 3, dtype=np.float32).reshape(24, 3)
STACK = LEAF.reshape(2, 12, 3)
HALVES = LEAF.reshape(3, 4, 2, 3).swapaxes(1, 2).reshape(24, 3)  # of three heads

LEAVES = {"a": LEAF, "b": LEAF + 100, "experts": STACK, "conv": LEAF.reshape(24, 1, 3)}

ASSEMBLED: tuple[tuple[dict[str, Piece], np.ndarray], ...] = (
    ({"a": Piece("w", heads=3)}, HALVES),
    ({"a": Piece("w", disk=Region(part=1, parts=2, alternates=True))}, LEAF[1::2]),
    (
        {
            "a": Piece("w", memory=Region(part=0, parts=2)),
            "b": Piece("w", memory=Region(part=1, parts=2)),
        },
        np.concatenate([LEAF, LEAF + 100]),
    ),
    (
        {
            "conv": Piece("w", memory=Region(part=0, parts=1)),
        },
        LEAF.reshape(24, 1, 3),
    ),
    (
        {
            "experts": Piece("w", memory=Region(part=0, parts=2, axis=1)),
            "more": Piece("w", memory=Region(part=1, parts=2, axis=1)),
        },
        np.concatenate([STACK, STACK], 1),
    ),
    (
        {"a": Piece("w", memory=Region(0)), "b": Piece("w", memory=Region(1))},
        np.stack([LEAF, LEAF + 100]),
    ),
    ({"a": Piece("w", is_transposed=True)}, LEAF.T),
)


@pytest.mark.parametrize(("pieces", "expected"), ASSEMBLED)
def test_assembled(pieces: dict[str, Piece], expected: np.ndarray) -> None:
    """Leaves with each kind of region are assembled to the tensor in memory."""
    leaves = {**LEAVES, "more": STACK}
    holdings = [Holding(leaf, piece) for leaf, piece in pieces.items()]
    assert np.array_equal(assembled(holdings, leaves.__getitem__), expected)
    shapes = {name: leaf.shape for name, leaf in leaves.items()}
    assert assembled_shape(holdings, shapes) == expected.shape


def test_leaf_that_cannot_be_assembled() -> None:
    """The error names the tensor."""
    holding = Holding("a", Piece("w", disk=Region(part=1, parts=5)))
    with pytest.raises(
        LayoutError, match=full_text("w: a (24, 3) can't be split into 5 equal parts.")
    ):
        assembled([holding], LEAVES.__getitem__)


def test_parts_of_experts_are_joined_before_experts_are_stacked() -> None:
    """By expert and then by part, along the matrix's own axis."""
    leaves = {
        f"{expert}{part}": LEAF[:2] + 100 * expert + 10 * part
        for expert in (0, 1)
        for part in (0, 1)
    }
    pieces = [
        Holding(f"{name}.weight", Piece("w", memory=Region(int(name[0]), int(name[1]), 2, axis)))
        for axis in (0, 1)
        for name in leaves
    ]
    shapes = {name: leaf.shape for name, leaf in leaves.items()}
    for axis, holdings in enumerate((pieces[:4], pieces[4:])):
        expected = np.stack(
            [np.concatenate([leaves[f"{e}0"], leaves[f"{e}1"]], axis) for e in (0, 1)]
        )
        assert np.array_equal(assembled(holdings, leaves.__getitem__), expected)
        assert assembled_shape(holdings, shapes) == expected.shape


def test_unsupported_operation_is_refused_before_anything_is_read() -> None:
    """For the shape too, whichever of the pieces has it."""

    def never(name: str) -> np.ndarray:
        raise AssertionError(name)

    holdings = [
        Holding("a.weight", Piece("w", memory=Region(part=0, parts=2))),
        Holding("b.weight", Piece("w", memory=Region(part=1, parts=2), problem="Chunk(dim=3)")),
    ]
    message = full_text(
        "transformers makes w from b.weight by Chunk(dim=3), which is not supported."
    )
    with pytest.raises(LayoutError, match=message):
        assembled(holdings, never)
    with pytest.raises(LayoutError, match=message):
        assembled_shape(holdings, {})
