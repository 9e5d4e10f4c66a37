"""Updates of a fused weight, of which a tree has the parts."""

from typing import Any

import numpy as np
import pytest

from jaxmix.apply.joined import Joint, joints_of, settle
from jaxmix.families import IA3, LoRA, Replace
from jaxmix.families.part_of import PartOf
from jaxmix.placement.form import Form
from jaxmix.placement.place import Place
from jaxmix.placement.sites import Site

from ..uncompiled import uncompiled

RNG = np.random.default_rng(0)
# q holds every second row of the fused weight, k the others.
NAMES, ROWS = ("q", "k"), ((0, 6, 2), (1, 6, 2))
WEIGHT, BIAS = RNG.normal(size=(6, 3)).astype(np.float32), np.arange(1, 7, dtype=np.float32)
A, B = RNG.normal(size=(2, 3)).astype(np.float32), RNG.normal(size=(6, 2)).astype(np.float32)


def site(number: int, *updates: tuple[Any, bool, int], has_bias: bool = True) -> Site:
    """A part with updates, each with whether it is of the whole, and the adapter's position."""
    name = NAMES[number]
    chain = tuple(
        (0.5, PartOf(update, NAMES, ROWS, number, is_whole, order))
        for update, is_whole, order in updates
    )
    bias = (Place(f"{name}.bias"), Form("bias")) if has_bias else (None, None)
    return Site(name, chain, Place(f"{name}.weight"), bias[0], Form(), bias[1])


LEAVES = {f"{name}.weight": WEIGHT[slice(*rows)] for name, rows in zip(NAMES, ROWS, strict=True)}
LEAVES |= {f"{name}.bias": BIAS[slice(*rows)] for name, rows in zip(NAMES, ROWS, strict=True)}


def settled(sites: tuple[Site, ...], kind: Any) -> dict[str, np.ndarray]:
    """The array by which each site's leaf is replaced, at strength 1."""
    found: dict[str, np.ndarray] = {}
    with uncompiled():
        chains = settle(Joint(sites, ROWS), kind, LEAVES.__getitem__)  # pyright: ignore
    for name, ((strength, update),) in chains.items():
        assert strength == 1.0 and isinstance(update, Replace)
        assert (update.weight is None) == (kind == "bias") != (update.bias is None)
        found[name] = np.asarray(update.weight if kind == "weight" else update.bias)
    return found


def test_sites_of_one_weight_have_one_joint() -> None:
    """Its sites are in the order of the parts, however they come; other sites have none."""
    lora = (LoRA(A, B, 1.0), True, 0)
    q, k, other = site(0, lora), site(1, lora), Site("o", ((1.0, LoRA(A, B, 1.0)),))
    found = joints_of([k, other, q])
    assert set(found) == {"q", "k"} and found["q"] is found["k"]
    assert found["q"].sites == (q, k) and found["q"].rows == ROWS
    assert joints_of([other]) == joints_of([]) == {}


def test_rows_of_parts_may_alternate() -> None:
    """Each part gets its own rows of the whole."""
    lora = (LoRA(A, B, 2.0), True, 0)
    parts = settled((site(0, lora), site(1, lora)), "weight")
    expected = WEIGHT + 0.5 * 2.0 * B @ A
    np.testing.assert_allclose(parts["q"], expected[::2], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(parts["k"], expected[1::2], rtol=1e-5, atol=1e-6)


def test_updates_are_applied_in_the_order_of_the_mix() -> None:
    """Those of the whole once, and those of a part to its rows only."""
    whole = (IA3(np.arange(1, 7, dtype=np.float32)), True, 1)
    before, after = (
        (Replace(np.full((3, 3), x, np.float32)), False, i) for x, i in ((5, 0), (7, 2))
    )
    parts = settled((site(0, whole, after), site(1, before, whole)), "weight")
    factors = (1 + np.arange(1.0, 7))[:, None] / 2
    np.testing.assert_allclose(parts["q"], (WEIGHT[::2] * factors[::2] + 7) / 2, rtol=1e-5)
    np.testing.assert_allclose(parts["k"], (WEIGHT[1::2] + 5) / 2 * factors[1::2], rtol=1e-5)


@pytest.mark.parametrize("has_bias", [True, False])
def test_only_parts_with_a_bias_get_one(has_bias: bool) -> None:
    """The bias of a part without one counts as zeros."""
    whole = (IA3(np.arange(1, 7, dtype=np.float32)), True, 0)
    parts = settled((site(0, whole), site(1, whole, has_bias=has_bias)), "bias")
    expected = BIAS * (1 + np.arange(1.0, 7)) / 2
    assert list(parts) == (["q", "k"] if has_bias else ["q"])
    np.testing.assert_allclose(parts["q"], expected[::2], rtol=1e-6)
    if has_bias:
        np.testing.assert_allclose(parts["k"], expected[1::2], rtol=1e-6)
