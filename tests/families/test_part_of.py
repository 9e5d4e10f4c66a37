"""Updates of a fused weight, at one of its parts."""

import numpy as np
import pytest

from jaxmix.affine import Base
from jaxmix.families import LoRA, Replace, Update
from jaxmix.families.part_of import PartOf

# Of 6 rows, q holds every second, k and v two and one of the others.
NAMES, ROWS = ("q", "k", "v"), ((0, 6, 2), (1, 4, 2), (5, 6, 1))


def part(update: Update, number: int, *, is_whole: bool = True) -> PartOf:
    return PartOf(update, NAMES, ROWS, number, is_whole)


def lora(rows: int) -> LoRA:
    return LoRA(np.ones((2, 3)), np.ones((rows, 2)), 1.0)


def test_update_of_the_whole_must_fit_the_fused_weight() -> None:
    """The part's own weight has fewer rows, the same columns."""
    for number, rows in enumerate((3, 2, 1)):
        assert part(lora(6), number).misfit((rows, 3)) is None
    assert part(lora(3), 0).misfit((3, 3)) == (
        "lora_B has shape (3, 2), expected (6, 2) from weight (6, 3)"
    )
    assert part(lora(6), 0).misfit((3, 4)) == (
        "lora_A has shape (2, 3), expected (2, 4) from weight (6, 4)"
    )


def test_update_of_one_part_must_fit_the_part() -> None:
    assert part(lora(2), 1, is_whole=False).misfit((2, 3)) is None
    assert part(lora(6), 1, is_whole=False).misfit((2, 3)) == (
        "lora_B has shape (6, 2), expected (2, 2) from weight (2, 3)"
    )


def test_part_has_its_own_number_of_rows() -> None:
    assert part(lora(6), 2).misfit((6, 3)) == (
        "part 3 of 3 of a fused weight has 6 rows, expected 1"
    )
    assert part(lora(6), 2).size() == "LoRA rank 2, part 3 of 3"


def test_part_alone_has_no_map() -> None:
    """Neither of its weight nor of its bias, and it is read by what joins the parts."""
    update = part(Replace(np.ones((6, 3)), np.ones(6)), 1)
    assert update.reads_base and update.has_bias
    for map_of in (update.weight_map, update.bias_map):
        with pytest.raises(NotImplementedError) as caught:
            map_of(Base(None, (2, 3)), np.ones(()))  # pyright: ignore
        assert str(caught.value) == (
            "k: its Replace is applied to q and k and v together, so it has no map of its own. The "
            "code that runs maps must join these parts first (jaxmix.apply.joined)."
        )
