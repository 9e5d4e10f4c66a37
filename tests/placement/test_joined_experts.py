"""LoRAs of single experts, joined into one LoRA of their stack."""

from typing import Any

import numpy as np
import pytest

from jaxmix.families import IA3, ExpertLoRA, LoRA, Update
from jaxmix.placement.joined_experts import join_experts, plain_lora, position_of
from jaxmix.placement.part_places import UnmappedError
from jaxmix.placement.regions import Region

IN = 5


def lora(rows: int, rank: int, **more: Any) -> LoRA:
    rng = np.random.default_rng([rows, rank])
    a, b = rng.normal(size=(rank, IN)), rng.normal(size=(rows, rank))
    return LoRA(a, b, 0.5 + rank, **more)


def product(update: LoRA) -> np.ndarray:
    """Δ of a LoRA."""
    return np.asarray(update.scale) * (np.asarray(update.b) @ np.asarray(update.a))


def check(parts: dict[Region, LoRA], expected: np.ndarray) -> None:
    """Checks Δ of the stack (experts, out, in); the joined LoRA has scale 1."""
    joined = join_experts(parts)
    assert isinstance(joined, ExpertLoRA) and float(joined.scale) == 1
    np.testing.assert_allclose(np.asarray(joined.b) @ np.asarray(joined.a), expected, rtol=1e-12)


def test_experts_may_be_absent_and_have_other_ranks() -> None:
    """Each expert's scale is in its own B."""
    first, last = lora(4, 1), lora(4, 3)
    expected = np.stack([product(first), np.zeros((4, IN)), product(last)])
    check({Region(2): last, Region(0): first}, expected)


def test_parts_of_a_matrix_are_block_diagonal() -> None:
    """So gate and up keep their own factors; their rows follow one another."""
    gate, up = {0: lora(4, 2), 1: lora(4, 1)}, {1: lora(4, 3)}
    parts = {Region(e, 0, 2): u for e, u in gate.items()} | {
        Region(e, 1, 2): u for e, u in up.items()
    }
    top = np.stack([product(gate[0]), product(gate[1])])
    bottom = np.stack([np.zeros((4, IN)), product(up[1])])
    check(parts, np.concatenate([top, bottom], 1))


def test_absent_part_has_the_stated_rows() -> None:
    """Without sizes it has those of the other part."""
    only = lora(4, 2)
    zeros = np.zeros((1, 6, IN))
    check({Region(0, 1, 2, sizes=(6, 4)): only}, np.concatenate([zeros, product(only)[None]], 1))
    check({Region(0, 1, 2): only}, np.concatenate([zeros[:, :4], product(only)[None]], 1))


@pytest.mark.parametrize(
    "update",
    [
        lora(4, 2, magnitude=np.ones(4)),
        lora(4, 2, bias=np.ones(4)),
        lora(4, 2, embedding=True),
        IA3(np.ones(4)),
    ],
    ids=["magnitude", "bias", "embedding", "IA3"],
)
def test_only_plain_loras_are_joined(update: Update) -> None:
    with pytest.raises(UnmappedError):
        plain_lora(update)
    plain = lora(4, 2)
    assert plain_lora(plain) is plain


def test_position_is_that_of_the_first_matching_end() -> None:
    """A leading dot does not count; a name without a match comes last."""
    targets = [".w1.weight", "w3.weight"]
    names = ("experts.0.w1.weight", "experts.0.w3.weight", "w1.weight", "experts.0.w2.weight")
    assert [position_of(name, targets) for name in names] == [0, 1, 0, 2]
    assert position_of("w1", []) == 0
