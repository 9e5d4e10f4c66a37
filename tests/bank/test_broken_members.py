"""A member with inf or NaN in a factor makes its own rows NaN, and changes no other rows."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix import Adapter, Bank
from jaxmix.bank import routing
from jaxmix.bank import stacks as bank_stacks
from jaxmix.bank.slots import entry
from jaxmix.families import IA3, OFT, LoKr, LoRA
from jaxmix.operators import Operator

from .test_backends import ROWS, SHAPE, SLOTS, SQUARE, STACKS, TOKENS, normal

BROKEN = 2
WHO = np.array([BROKEN, -1, 0, BROKEN, 1], np.int32)
OTHERS = WHO != BROKEN
# A row selects one factor at most, and lookups make factors dense.
CASES = [(name, "slots") for name in SQUARE] + [
    (name, use) for name in STACKS for use in ("slots", "strengths", "lookup")
]


def broken(operator: Operator, value: float) -> Iterator[Operator]:
    """Yields the operator with the value in one number of each array of floats."""
    leaves, structure = jax.tree.flatten(operator)
    for i, leaf in enumerate(leaves):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            spoiled = leaf.at[(1,) * leaf.ndim].set(value)
            yield jax.tree.unflatten(structure, [*leaves[:i], spoiled, *leaves[i + 1 :]])


def alone(operator: Operator) -> Any:
    """A stack of a single operator."""
    return jax.tree.map(lambda x: x[None], operator)


@pytest.mark.one_of(2)
@pytest.mark.parametrize("name, use", CASES)
def test_rows_of_others_are_equal_bit_for_bit(name: str, use: str, backend: str) -> None:
    is_factor, is_lookup = name in SQUARE, use == "lookup"
    stack = (STACKS | SQUARE)[name]()
    sound = [entry(stack, slot) for slot in range(SLOTS)]
    x = normal(ROWS, TOKENS, sound[0].shape[0], seed=5)
    who: Any = jnp.asarray(WHO)
    if use == "strengths":
        who = normal(ROWS, SLOTS, seed=6).at[np.flatnonzero(OTHERS), BROKEN].set(0)
    if is_lookup:
        x = jnp.tile(jnp.arange(SHAPE[0], dtype=np.int32)[None], (ROWS, 1))

    @jax.jit
    def rows(stacks: Any, table: Any) -> Any:
        def row(x: Any, routes: Any) -> Any:
            own = routing.select(stacks, routes, sound[0].shape, is_factor, 1)
            return own.take_rows(x) if is_lookup else x @ own

        return jax.vmap(row)(x, routing.route(table, bank_stacks.broken_table(stacks), who))

    def run(last: Operator) -> Any:
        items = [((i,), [alone(operator)]) for i, operator in enumerate((*sound[:BROKEN], last))]
        stacks, owners = bank_stacks.build_stacks(items, lambda count: count, 0)
        return np.asarray(rows(stacks, bank_stacks.owner_table(stacks, owners)))

    want = run(sound[BROKEN])
    for value in (np.inf, np.nan):
        for operator in broken(sound[BROKEN], value):
            got = run(operator)
            np.testing.assert_array_equal(got[OTHERS], want[OTHERS])
            assert not np.isfinite(got[~OTHERS]).any()


def lora(value: float = 1.0) -> LoRA:
    """A LoRA with the value in one number of its second factor."""
    b = np.ones((3, 1), np.float32)
    b[1] = value
    return LoRA(jnp.ones((1, 2)), jnp.asarray(b), 1.0)


def test_members_are_checked_when_they_enter(backend: str) -> None:
    """When the bank is made, and when one is replaced or added; the jitted function stays."""
    params = {"a.weight": jnp.ones((3, 2)), "b.weight": jnp.ones((3, 2))}

    def member(value: float) -> Adapter:
        return Adapter({"a": lora(value), "b": lora()})

    bank = Bank({"good": member(1), "inf": member(np.inf), "other": member(2)}, params, capacity=4)
    traces = []

    @jax.jit
    def run(bank: Any, who: Any) -> Any:
        traces.append(1)
        x = jnp.ones((4, 2))
        use = bank(lambda params, x: (x @ params["a.weight"].T, x @ params["b.weight"].T))
        return use(params, x, who)

    def finite(bank: Any, *names: str | None) -> list[bool]:
        a, b = run(bank, bank.who(names))
        assert np.isfinite(b).all()
        return np.isfinite(a).all(1).tolist()

    assert finite(bank, "good", "inf", None, "other") == [True, False, True, True]
    added = bank.add("nan", member(np.nan))
    assert finite(added, "good", "inf", "nan", "other") == [True, False, False, True]
    replaced = added.replace("inf", member(3))
    assert finite(replaced, "good", "inf", "nan", "other") == [True, True, False, True]
    assert finite(replaced.remove("nan"), "good", "inf", None, "other") == [True] * 4
    assert len(traces) == 1


def test_a_broken_member_beside_members_of_other_structures(backend: str) -> None:
    """Its row selects nothing from their stacks, and is NaN all the same."""
    params = {"a.weight": jnp.ones((3, 2))}
    lokr = LoKr((jnp.ones((3, 1)),), (jnp.ones((1, 2)),), 1.0)
    members = {"broken": Adapter({"a": lora(np.inf)}), "lokr": Adapter({"a": lokr})}
    bank = Bank(members, params)
    out = bank(lambda params, x: x @ params["a.weight"].T)(
        params, jnp.ones((3, 2)), ["lokr", "broken", None]
    )
    assert np.isnan(out).all(1).tolist() == [False, True, False]


def test_other_kinds_of_leaves(backend: str) -> None:
    """Layers, diagonals, and whole leaves: a row has what its own member makes."""
    params = {
        "layers": {"a": {"kernel": jnp.ones((2, 2, 3))}},
        "b": {"kernel": jnp.ones((2, 3))},
    }
    bad = jnp.ones(3).at[1].set(np.nan)
    members = {
        "first": Adapter({"layers.0.a": lora(np.inf), "layers.1.a": lora()}),
        "second": Adapter({"layers.1.a": lora(), "b": IA3(bad)}),
        "third": Adapter({"b": OFT(jnp.full((1, 1), np.nan))}),
        "fourth": Adapter({"b": IA3(jnp.ones(3))}),
    }

    def run(params: Any, x: Any) -> Any:
        def layer(x: Any, kernel: Any) -> tuple[Any, Any]:
            return x, x @ kernel

        _, out = jax.lax.scan(layer, x, params["layers"]["a"]["kernel"])
        return out.swapaxes(0, 1), x @ params["b"]["kernel"]

    names = [*members, None]
    a, b = Bank(members, params)(run)(params, jnp.ones((5, 2)), names)
    assert np.isfinite(a).all((1, 2)).tolist() == [False, True, True, True, True]
    assert np.isfinite(b).all(1).tolist() == [True, False, False, True, True]
