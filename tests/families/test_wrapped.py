"""An update that represents another one has the other update's flags."""

from dataclasses import dataclass

import numpy as np
import pytest

from jaxmix.families import IA3, OFT, LoRA, Replace, Update
from jaxmix.families.part_of import PartOf
from jaxmix.families.rows import Rows
from jaxmix.families.wrapped import WrappedUpdate

A, B = np.ones((1, 3)), np.ones((4, 1))
FLAGS = ("transposed", "has_weight", "has_bias", "maps_bias")


@dataclass(frozen=True, eq=False)
class Wrapper(WrappedUpdate):
    """A wrapper without properties of its own."""


UPDATES: dict[str, Update] = {
    "a weight": LoRA(A, B, 1.0, transposed=False),
    "an unknown orientation": LoRA(A, B, 1.0, transposed=None),
    "a Conv1D": OFT(np.ones((1, 3)), transposed=True),
    "a weight and a bias": LoRA(A, B, 1.0, bias=np.ones(4)),
    "a bias alone": Replace(bias=np.ones(4)),
    "a bias that is scaled": IA3(np.ones(4)),
}


@pytest.mark.parametrize("update", UPDATES.values(), ids=UPDATES)
def test_flags_are_those_of_the_wrapped_update(update: Update) -> None:
    wrapper = Wrapper(update)
    assert [getattr(wrapper, flag) for flag in FLAGS] == [getattr(update, flag) for flag in FLAGS]


def test_updates_differ_in_every_flag() -> None:
    """The previous test can fail for each flag."""
    for flag in FLAGS:
        assert len({getattr(update, flag) for update in UPDATES.values()}) > 1, flag


def test_parts_are_wrapped_updates() -> None:
    """`Rows` and `PartOf` have the flags of the update of which they are parts."""
    update = UPDATES["a weight and a bias"]
    rows = Rows(update, 0, 2, 4)
    part = PartOf(update, ("q", "k"), ((0, 2, 1), (2, 4, 1)), 1)
    for wrapper in (rows, part):
        assert isinstance(wrapper, WrappedUpdate) and wrapper.has_bias and wrapper.has_weight
