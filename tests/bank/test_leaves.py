"""One leaf of a bank: its description, and members that fit it or do not."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxmix import Adapter, attach
from jaxmix.bank.leaves import BankLeaf, build_leaf
from jaxmix.bank.maps import SlotCounts
from jaxmix.bank.slots import NOTHING, Selection
from jaxmix.bank.stacks import owner_table
from jaxmix.families import OFT, Delta, LoKr, LoRA, Rebase, Replace, Update
from jaxmix.unmerged.leaf import Factored

from ..uncompiled import uncompiled

PARAMS = {"w.weight": np.arange(24, dtype=np.float32).reshape(4, 6), "w.bias": np.ones(4, "f4")}


def normal(*shape: int) -> Any:
    return jnp.asarray(np.random.default_rng(shape).normal(size=shape), jnp.float32)


def leaf(update: Update, name: str = "w.weight") -> Factored:
    return attach(PARAMS, Adapter({"w": update}))[name]


def lora(rank: int = 2, **options: Any) -> LoRA:
    return LoRA(normal(rank, 6), normal(4, rank), 0.5, **options)


def built(*leaves: Factored, row: int = 0) -> tuple[BankLeaf, Any]:
    """The leaf with room for one more member, and its table of owners."""
    counts = SlotCounts(2 * len(leaves), len(leaves))
    made, owners = build_leaf("w.weight", dict(enumerate(leaves)), counts, row)
    return made, owners


def test_the_description_counts_the_slots_of_each_side() -> None:
    with uncompiled():
        made, owners = built(leaf(OFT(0.3 * normal(3, 1))), leaf(lora()), row=5)
        whole, _ = built(leaf(Replace(bias=normal(4)), "w.bias"))
    assert made.described() == "w.weight: R BlockDiagonal of 2 slots, Δ LowRank of 2 slots"
    assert [stack.row for stack in made.all_stacks] == [5, 6] and owners == [(0,), (1,)]
    assert whole.described() == (
        "w.weight: whole, 2 slots (a vector, as cheap to make dense as to use)"
    )


def test_a_member_fits_if_its_structures_have_free_slots() -> None:
    """A rotation would also make a linear leaf another program, so it does not fit."""
    with uncompiled():
        made, owners = built(leaf(lora()))
        table = owner_table(made.all_stacks, owners)
        assert made.is_linear
        for other in (
            OFT(0.3 * normal(3, 1)),
            lora(9),
            LoKr((normal(2, 3),), (normal(2, 2),), 1.0),
        ):
            assert made.put(1, leaf(other), table.copy()) is None
        fuller = made.put(1, leaf(lora(2)), table)
        assert fuller is not None and table.tolist() == [[0, 1]]
        assert fuller.put(2, leaf(lora(2)), table) is None


def test_a_new_base_does_not_fit_beside_members_that_only_add() -> None:
    """It has the structure of a Delta, but later updates read what it writes."""
    with uncompiled():
        made, owners = built(leaf(Delta(normal(4, 6))))
        table = owner_table(made.all_stacks, owners)
        assert made.is_linear and made.put(1, leaf(Rebase(normal(4, 6))), table.copy()) is None
        assert made.put(1, leaf(Delta(normal(4, 6))), table) is not None


def test_rows_of_a_whole_leaf_have_their_own_members_leaf_or_the_base() -> None:
    with uncompiled():
        first, second = (
            leaf(lora(bias=normal(4)), "w.bias"),
            leaf(Replace(bias=normal(4)), "w.bias"),
        )
        made, _ = built(first, second)
        for slot, expected in ((0, first.dense()), (1, second.dense()), (NOTHING, np.ones(4))):
            routes = Selection(jnp.array([slot], np.int32))
            own = made.of_row(PARAMS["w.bias"], routes, 1, None)
            np.testing.assert_array_equal(own, expected)
