"""The size of the weight of an update, as far as its factors determine it."""

import numpy as np
import pytest

from jaxmix.families import IA3, OFT, Delta, DiagOFT, LoHa, LoKr, LoRA, Normed, Together, Update
from jaxmix.families.row_counts import matrix_shape, row_count
from jaxmix.families.rows import Rows

ones = np.ones
LORA = LoRA(ones((2, 3)), ones((8, 2)), 1.0)
CORE = ones((2, 2, 3, 1))
LOHA = LoHa(ones((8, 2)), ones((2, 3)), ones((8, 2)), ones((2, 3)), 1.0)
ROTATION = DiagOFT(ones((3, 2, 2)), side="out")

CASES: dict[str, tuple[Update, tuple[int, int] | None, int | None]] = {
    "LoRA": (LORA, (8, 3), 8),
    "LoHa": (LOHA, (8, 3), 8),
    "LoHa of a convolution": (
        LoHa(ones((2, 8)), ones((2, 3)), ones((2, 8)), ones((2, 3)), 1.0, CORE, CORE),
        *(None, None),
    ),
    "LoKr": (LoKr((ones((2, 4)),), (ones((5, 3)),), 1.0), (10, 12), 10),
    "LoKr of pairs": (
        LoKr((ones((2, 1)), ones((1, 4))), (ones((5, 1)), ones((1, 3))), 1.0),
        *((10, 12), 10),
    ),
    "LoKr of a convolution": (LoKr((ones((2, 4)),), (ones((5, 3, 1)),), 1.0), None, None),
    "difference": (Delta(ones((8, 3)), ones(8)), (8, 3), 8),
    "difference of a convolution": (Delta(ones((8, 3, 1))), None, 8),
    "difference of a bias": (Delta(bias=ones(8)), None, 8),
    "no difference": (Delta(), None, None),
    "rows": (Rows(LORA, 2, 6, 8), (4, 3), 4),
    "rows of an unknown update": (Rows(IA3(ones(8)), 2, 6, 8), None, None),
    "normed": (Normed(LORA, ones(8)), (8, 3), 8),
    "together": (Together((Delta(bias=ones(8)), LORA)), (8, 3), 8),
    "nothing together": (Together(()), None, None),
    "rotation": (ROTATION, None, 6),
    "rotation of inputs": (DiagOFT(ones((3, 2, 2)), side="in"), None, None),
    "rescaled rotation": (DiagOFT(ones((1, 2, 2)), ones(6), side="out"), None, 6),
    "rescaling": (DiagOFT(None, ones(6), side="out"), None, 6),
    "other family": (OFT(ones((3, 1))), None, None),
}


@pytest.mark.parametrize(("update", "shape", "rows"), CASES.values(), ids=CASES)
def test_sizes_follow_from_factors(
    update: Update, shape: tuple[int, int] | None, rows: int | None
) -> None:
    """None where the factors of a family do not state them."""
    assert matrix_shape(update) == shape and row_count(update) == rows
    if shape is not None:
        assert update.misfit(shape) is None


def test_single_block_may_be_repeated() -> None:
    """In PEFT's files, of which the factor of the rotation differs from 1."""
    block = ones((1, 2, 2))
    assert row_count(DiagOFT(block, side="out", factor=1.0)) == 2
    assert row_count(DiagOFT(block, side="out", factor=2.0)) is None
    assert row_count(DiagOFT(ones((2, 2, 2)), side="out", factor=2.0)) == 4
