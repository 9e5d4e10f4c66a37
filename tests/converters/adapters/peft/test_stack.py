"""The order of PEFT's stacks: runs of OFT, splits, names, biases. Parity is in tests/parity."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix import Adapter, mix
from jaxmix.converters.adapters.peft import peft_stack
from jaxmix.errors import AdapterError, UnsupportedError
from jaxmix.families import OFT, LoRA, Replace, Together

from ....messages import full_text

ONE, ROW, BIAS = jnp.ones((1, 2)), jnp.ones((2, 1)), jnp.ones(2)
TURN = jnp.full((1, 1), 0.3)
UPDATES = {
    "R": lambda: OFT(TURN),
    "E": lambda: OFT(TURN, embedding=True),
    "L": lambda: LoRA(ONE, ROW, 1.0),
    "B": lambda: Replace(bias=BIAS),
    "W": lambda: Replace(weight=jnp.eye(2)),
    "b": lambda: LoRA(ONE, ROW, 1.0, bias=BIAS),
    "r": lambda: Together((Replace(bias=BIAS), OFT(TURN))),
}


def adapters(*spelled):
    """Adapters from letters: ``"R.L"`` is an OFT at site s0, nothing at s1, a LoRA at s2."""
    parts = []
    for name, letters in zip("abcdefgh", spelled, strict=False):
        sites = {f"s{i}": UPDATES[c]() for i, c in enumerate(letters) if c != "."}
        parts.append(Adapter(sites, name=name))
    return parts


def order(*spelled):
    """The order of one site, by the adapters' names."""
    return "".join(part.name for part in peft_stack(adapters(*spelled)).parts)


@pytest.mark.parametrize(
    ("letters", "expected"),
    [
        ("", ""),
        ("R", "a"),
        ("L", "a"),
        ("LL", "ab"),
        ("RR", "ba"),
        ("RRR", "cba"),
        ("RLR", "abc"),
        ("RRL", "bac"),
        ("LRR", "acb"),
        ("RRLRR", "baced"),
        ("RLRRLR", "abdcef"),
        # A trained bias wraps nothing, so it does not split a run; a replaced weight does.
        ("RBR", "cba"),
        ("RBRL", "cbad"),
        ("BRR", "acb"),
        ("RWR", "abc"),
        ("Rr", "ba"),
        # Rotations of an embedding act in loading order.
        ("EE", "ab"),
        ("EEE", "abc"),
        ("LEE", "abc"),
    ],
)
def test_rotations_of_a_site_are_reversed(letters, expected):
    """Runs of consecutive OFT are reversed; nothing else changes."""
    assert order(*letters) == expected


def test_all_chains_of_four_kinds():
    """The order equals the rule in other terms: a rotation moves to the front of its run."""
    for letters in itertools.product("RL", repeat=4):
        expected: list[str] = []
        start = 0
        for i, letter in enumerate(letters):
            start = start if letter == "R" else i + 1
            expected.insert(start if letter == "R" else i, "abcd"[i])
        assert order(*letters) == "".join(expected), letters


def test_runs_are_found_per_site():
    """An adapter that does not touch a site does not split its runs."""
    assert order("R.", ".L", "R.") == "bca"
    assert [p.name for p in peft_stack(adapters("R.", "R.", ".L")).parts] == ["b", "a", "c"]


def test_sites_that_disagree_split_their_adapters():
    """Two OFT at one site and two LoRA at another: no single order is right for both."""
    a, b = adapters("RL", "RL")
    stack = peft_stack([0.5 * a, b])
    names = [part.name for part in stack.parts]
    assert names == ["b (1)", "a (1)", "a (2)", "b (2)"]
    assert [part.sites for part in stack.parts] == [("s0",), ("s0",), ("s1",), ("s1",)]
    assert [part.strength for part in stack.parts] == [1.0, 0.5, 0.5, 1.0]
    # Every update appears once, as the same object.
    for adapter in (a, b):
        orders = {
            s: u for p in stack.parts if p.name[0] == adapter.name for s, u in p.updates.items()
        }
        assert all(orders[site] is update for site, update in adapter.updates.items())


def test_sites_that_agree_stay_together():
    """Three groups at most, and an uncut adapter keeps its name."""
    stack = peft_stack(adapters("RLRL", "RLRL", "...R"))
    assert [(p.name, p.sites) for p in stack.parts] == [
        ("b (1)", ("s0", "s2")),
        ("a (1)", ("s0", "s2")),
        ("a (2)", ("s1", "s3")),
        ("b (2)", ("s1", "s3")),
        ("c", ("s3",)),
    ]


def test_cycle_of_three():
    """No two sites contradict each other, but all three together do."""
    stack = peft_stack(adapters("RR.", "R.L", ".RL"))
    letters = {s: [p.name[0] for p in stack.parts if s in p.updates] for s in ("s0", "s1", "s2")}
    assert letters == {"s0": ["b", "a"], "s1": ["c", "a"], "s2": ["b", "c"]}


def test_splitting_keeps_the_result():
    """The result at each site is the fold in the site's own order."""
    parts = adapters("RL", "RL")
    params = {f"s{i}.weight": np.array([[1.0, 2.0], [3.0, 5.0]], np.float32) for i in range(2)}
    out = peft_stack(parts)(params)
    backwards, forwards = mix(*parts[::-1])(params), mix(*parts)(params)
    assert jnp.array_equal(out["s0.weight"], backwards["s0.weight"])
    assert jnp.array_equal(out["s1.weight"], forwards["s1.weight"])


def test_single_adapter_is_unchanged():
    """A stack of a stack's parts is the same stack if there is no OFT."""
    (lone,) = adapters("RLB")
    assert peft_stack([lone]).parts == (lone,)
    parts = peft_stack(adapters("L", "r", "L")).parts
    assert peft_stack(parts).parts == parts
    assert peft_stack([]).parts == ()


def test_any_sequence_is_accepted():
    """The adapters may be a tuple or a generator, and strengths may be traced."""
    parts = adapters("R", "R")
    assert [p.name for p in peft_stack(tuple(parts)).parts] == ["b", "a"]
    params = {"s0.weight": np.eye(2, dtype=np.float32)}

    @jax.jit
    def run(strength):
        return peft_stack([strength * parts[0], parts[1]])(params)["s0.weight"]

    assert jnp.allclose(run(jnp.float32(1.0)), peft_stack(parts)(params)["s0.weight"])


def test_invalid_arguments_are_refused():
    """Refuses mixes, which PEFT does not load, a bare adapter, other objects, and equal names."""
    a, b = adapters("R", "L")
    stack: Any = peft_stack  # to allow wrong types
    with pytest.raises(
        AdapterError,
        match=full_text(
            "peft_stack got mix of 2 adapters, applied in this order:\n"
            "  1. a: OFT block 2 at 1 site, strength 1 (s0)\n"
            "  2. b: LoRA rank 1 at 1 site, strength 1 (s0), expected "
            "single adapters: PEFT loads no mixes. Pass their parts, in "
            "order."
        ),
    ):
        stack([mix(a, b)])
    for bare in (a, mix(a, b)):
        message = full_text(
            f"peft_stack got {bare!r}, expected a list of adapters in the order of loading. Write "
            "peft_stack([a, b])."
        )
        with pytest.raises(AdapterError, match=message):
            stack(bare)
    with pytest.raises(
        AdapterError,
        match=full_text(
            "peft_stack got 'a', expected single adapters: PEFT loads no "
            "mixes. Pass their parts, in order."
        ),
    ):
        stack(["a"])
    with pytest.raises(
        AdapterError,
        match=full_text(
            "two adapters of a mix have the name 'a'. Give each its own: "
            "jaxmix.load(…, name='other') or adapter.renamed('other')."
        ),
    ):
        stack([a, a])
    with pytest.raises(
        AdapterError,
        match=full_text(
            "two adapters of a mix have the name 'a'. Give each its own: "
            "jaxmix.load(…, name='other') or adapter.renamed('other')."
        ),
    ):  # before adapters are split and numbered
        stack([adapter.renamed("a") for adapter in adapters("RL", "RL")])


@pytest.mark.parametrize(
    ("letters", "lost_parts"),
    [
        ("bB", "s0: 'a' and 'b'"),
        ("rr", "s0: 'b' and 'a'"),
        ("brr", "s0: 'a' and 'c'"),
    ],
)
def test_biases_without_a_valid_order(letters, lost_parts):
    """PEFT keeps trained biases in the base, the last one loaded: no chain of maps does that."""
    with pytest.raises(UnsupportedError) as caught:
        peft_stack(adapters(*letters))
    message = str(caught.value)
    assert message.startswith(
        "PEFT keeps a trained bias in the base, where it is applied before every"
    )
    assert f"\n  {lost_parts}" in message and message.endswith(
        "Train one of them with bias='none'."
    )


@pytest.mark.parametrize("letters", ["Bb", "BB", "rB", "RBR", "LB", "BL"])
def test_biases_with_a_valid_order(letters):
    """The last trained bias wins, and added biases come after."""
    assert len(peft_stack(adapters(*letters)).parts) == len(letters)
