"""What a bank is built from: its capacity, the mix of all members, and later members."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix import Adapter, mix
from jaxmix.bank.building import (
    MemberNames,
    attach_member,
    build_leaves,
    check_capacity,
    insert_member,
    mix_all,
)
from jaxmix.bank.maps import SlotCounts
from jaxmix.errors import AdapterError
from jaxmix.families import LoRA

from ..messages import full_text
from ..uncompiled import uncompiled

PARAMS = {name: np.zeros((4, 6), np.float32) for name in ("a.weight", "b.weight", "c.weight")}


def adapter(*sites: str, strength: float = 1.0) -> Adapter:
    lora = LoRA(jnp.ones((2, 6)), jnp.ones((4, 2)), 1.0)
    return Adapter(dict.fromkeys(sites, lora), strength, name="lora")


@pytest.mark.parametrize(("count", "capacity"), [(0, 1), (1, 1), (3, 4), (4, 4), (5, 8)])
def test_default_capacity_is_the_next_power_of_two(count: int, capacity: int) -> None:
    assert check_capacity(None, count) == capacity and check_capacity(7, count) == 7


@pytest.mark.parametrize("capacity", [0, True, 2.0, "4", 2])
def test_a_capacity_holds_all_members(capacity: Any) -> None:
    message = f"Bank: capacity is {capacity!r}, expected an integer of at least 3, the number of "
    with pytest.raises(AdapterError, match=full_text(f"{message}members.")):
        check_capacity(capacity, 3)


def test_all_members_are_one_mix_in_order() -> None:
    """Parts are named after their members, so two adapters of one name can be mixed."""
    members = {"x": adapter("a"), "y": mix(adapter("a"), adapter("b", strength=0.5).renamed("z"))}
    mixed = mix_all(members, [2.0, 3.0])
    assert [(part.name, part.strength) for part in mixed.parts] == [
        ("x/0", 2.0),
        ("y/0", 3.0),
        ("y/1", 1.5),
    ]
    assert [part.strength for part in mix_all(members).parts] == [1, 1, 0.5]
    assert mix_all({}).parts == ()


def test_leaves_are_in_the_order_of_the_tree() -> None:
    """And a later member fits only at leaves that an earlier one changes."""
    with uncompiled():
        members = {0: adapter("b"), 3: adapter("a", "b")}
        leaves, owners = build_leaves(PARAMS, members, None, SlotCounts(4, 2))
        assert [leaf.name for leaf in leaves] == ["a.weight", "b.weight"]
        assert owners.tolist() == [[3, -1, -1, -1], [0, 3, -1, -1]]
        assert insert_member(leaves, attach_member(PARAMS, adapter("c"), None), 1, owners) is None
        new = attach_member(PARAMS, adapter("a"), None)
        assert list(new) == ["a.weight"]
        assert insert_member(leaves, new, 1, owners) is not None
        assert owners.tolist() == [[3, 1, -1, -1], [0, 3, -1, -1]]


def test_names_of_members_are_not_compared() -> None:
    """They are static data of a bank, and other names must not recompile its calls."""
    first, second = MemberNames(("a", None)), MemberNames(("b", "c"))
    assert first == second and hash(first) == hash(second)
