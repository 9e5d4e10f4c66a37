"""The operators of members at one leaf: groups of equal structure, and leaves without any."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmix import Adapter, Layout, Rule, attach
from jaxmix.bank.maps import Maps, SlotCounts, maps_of, stacked_maps
from jaxmix.bank.slots import entry
from jaxmix.families import IA3, OFT, LoRA, Update
from jaxmix.operators import LowRank
from jaxmix.unmerged.leaf import Factored, NotApart

from ..uncompiled import uncompiled

PARAMS = {"a.weight": np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)}


def normal(*shape: int, seed: int = 0) -> Any:
    return jnp.asarray(np.random.default_rng([seed, *shape]).normal(size=shape), jnp.float32)


def lora(rank: int, seed: int = 0) -> LoRA:
    return LoRA(normal(rank, 6, seed=seed), normal(4, rank, seed=seed), 0.5)


def leaf(update: Update) -> Factored:
    return attach(PARAMS, Adapter({"a": update}))["a.weight"]


def test_slots_are_shared_out_by_members() -> None:
    """All slots suffice for as many members as the bank holds; without members there are none."""
    assert [SlotCounts(8, 3)(count) for count in (0, 1, 3)] == [0, 3, 8]
    assert SlotCounts(4, 4)(2) == 2 and SlotCounts(4, 0)(0) == 0
    assert hash(SlotCounts(4, 2)) == hash(SlotCounts(4, 2))


def test_members_of_similar_sizes_share_a_stack_and_keep_their_numbers() -> None:
    """Ranks 3 and 4 are padded to 4; a rotation has a stack of its own on another side."""
    members = {2: leaf(lora(3)), 5: leaf(OFT(0.3 * normal(3, 1))), 7: leaf(lora(4, 1))}
    with uncompiled():
        maps = stacked_maps(members, SlotCounts(6, 3))
        assert isinstance(maps, Maps)
        assert {side: len(stacks) for side, stacks in maps.sides.items()} == {
            "left": 0,
            "right": 1,
            "shift": 1,
        }
        assert maps.owners == ((5,), (2, 7)) and not maps.is_linear
        (right,), (shift,) = maps.sides["right"], maps.sides["shift"]
        assert (right.row, right.slots, shift.row, shift.slots) == (0, 2, 1, 4)
        for slot, number in enumerate((2, 7)):
            own = maps_of(members[number])
            assert isinstance(own, Maps) and own.is_linear
            (expected,) = own.sides["shift"]
            assert isinstance(expected, LowRank) and expected.rank == 4
            actual = entry(shift.stack, np.int32(slot))
            np.testing.assert_allclose(actual.dense(), expected.dense(), rtol=1e-6)


def test_a_scaling_is_not_linear_in_its_strength() -> None:
    with uncompiled():
        maps = maps_of(leaf(IA3(1 + normal(4))))
    assert isinstance(maps, Maps) and not maps.is_linear and len(maps.sides["left"]) == 1


def test_one_member_without_a_map_makes_the_leaf_whole() -> None:
    """Two sites whose axes differ in the leaf can't be kept apart from it."""
    rules = (Rule("q", "qv", None, "0:2"), Rule("v", "qv", "a b -> b a", "2:8"))
    params = {"qv": np.zeros((8, 6), np.float32)}
    both = Adapter({"q": LoRA(normal(1, 6), normal(2, 1), 1.0)}) * 1.0
    both = Adapter({**both.updates, "v": LoRA(normal(1, 6), normal(6, 1), 1.0)})
    broken = attach(params, both, layout=Layout("odd", rules))["qv"]
    with uncompiled():
        maps = stacked_maps({0: broken}, SlotCounts(1, 1))
    assert isinstance(maps, NotApart) and maps.why == "its sites have different axes in the leaf"
    assert jax.tree.leaves(maps) == []
