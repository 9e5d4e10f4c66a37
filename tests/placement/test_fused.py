"""Updates of a fused weight that can't be cut, applied to trees with its parts."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxmix
from jaxmix.affine import Base
from jaxmix.errors import LayoutError
from jaxmix.families import (
    BOFT,
    IA3,
    DiagOFT,
    LoRA,
    Normed,
    Replace,
    Together,
    Update,
)
from jaxmix.families.boft import butterfly
from jaxmix.families.part_of import PartOf
from jaxmix.families.rows import rows_of
from jaxmix.placement.fused import in_order

from ..families.module import Module
from ..families.table import SAMPLES
from ..uncompiled import uncompiled

BLOCK, K = Module("linear", (12, 8), True), Module("linear", (4, 8), True)
QKV = [f"transformer_blocks.0.attn.to_{x}" for x in "qkv"]
HEAD = (
    "adapter '{}': sites that can't be mapped to the weights, which have the names of {}:\n  {}: "
)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """Random numbers."""
    return np.random.default_rng(seed).normal(size=shape)


def whole_update(name: str) -> Update:
    """An update of qkv that mixes its rows."""
    rng = np.random.default_rng(7)
    delta = LoRA(rng.normal(size=(2, 8)), rng.normal(size=(12, 2)), 0.5)
    updates: dict[str, Update] = {
        "BOFT of outputs": BOFT(
            rng.normal(size=(2, 2, 6, 6)), rng.normal(size=12), butterfly(2, 2, 6), on_output=True
        ),
        "OFT of outputs": DiagOFT(rng.normal(size=(2, 6, 6)), side="out"),
        "Normed by inputs": Normed(delta, 1 + rng.random(8), axis="in"),
        "biases": Together((DiagOFT(rng.normal(size=(2, 6, 6)), side="out"), IA3(np.arange(12.0)))),
    }
    return updates[name] if name in updates else SAMPLES[name].draw(rng, BLOCK)


UNCUTTABLE = ["KaSA", "DEFT", "PEANuT", "FRoD", "BOFT of outputs", "OFT of outputs"]
UNCUTTABLE += ["Normed by inputs", "biases"]
FUSED_QKV = "double_blocks.0.img_attn.qkv"


def in_row(update: Update, *, ends: bool = True) -> tuple[list[jaxmix.Adapter], list[Any]]:
    """Adapters of qkv in a row, and the same with all but the given update cut to q, k and v."""
    rng = np.random.default_rng(9)
    fused, split = [0.7 * jaxmix.Adapter({FUSED_QKV: update}, name="whole")], []
    before, after = (SAMPLES[name].draw(rng, BLOCK) for name in ("DoRA", "Together"))
    if ends:
        first = [0.4 * jaxmix.Adapter({FUSED_QKV: before}, name="before")]
        fused = [*first, *fused, jaxmix.Adapter({FUSED_QKV: after}, name="after")]
    for adapter in fused:
        if adapter.name == "whole":
            split.append(adapter)
            continue
        update = adapter.updates[FUSED_QKV]
        cut = [rows_of(update, slice(4 * i, 4 * i + 4), (12, 8)) for i in range(3)]
        sites = {name: part for name, part in zip(QKV, cut, strict=True) if part is not None}
        assert len(sites) == 3
        split.append(adapter.strength * jaxmix.Adapter(sites, name=adapter.name))
    return fused, split


def trees() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """A tree with qkv and its bias, and a tree with the same numbers as q, k and v."""
    weight, bias = normal(12, 8), normal(12, seed=1)
    fused = {f"{FUSED_QKV}.weight": weight, f"{FUSED_QKV}.bias": bias}
    split = {f"{name}.weight": weight[4 * i : 4 * i + 4] for i, name in enumerate(QKV)}
    split |= {f"{name}.bias": bias[4 * i : 4 * i + 4] for i, name in enumerate(QKV)}
    return fused, split


def check_split(actual: Any, expected: Any, rtol: float = 1e-9) -> None:
    """Checks that q, k and v equal the parts of qkv."""
    for leaf in ("weight", "bias"):
        actual_leaf = np.concatenate([actual[f"{name}.{leaf}"] for name in QKV])
        expected_leaf = expected[f"{FUSED_QKV}.{leaf}"]
        np.testing.assert_allclose(actual_leaf, expected_leaf, rtol=rtol, atol=1e-3 * rtol)


@pytest.mark.parametrize("name", UNCUTTABLE)
def test_uncuttable_updates_apply_to_all_parts(name: str) -> None:
    """Such an update gives the same result on q, k and v as on qkv, also among other updates."""
    fused_tree, split_tree = trees()
    adapters, others_cut = in_row(whole_update(name))
    with jax.enable_x64(True), uncompiled():
        expected = jaxmix.compose(fused_tree, adapters)
        check_split(jaxmix.compose(split_tree, adapters), expected)
        check_split(jaxmix.compose(split_tree, others_cut), expected)
        alone = in_row(whole_update(name), ends=False)[0]
        check_split(jaxmix.compose(split_tree, alone), jaxmix.compose(fused_tree, alone))


@pytest.mark.one_of(4)
@pytest.mark.parametrize("name", UNCUTTABLE)
def test_uncuttable_updates_under_jit(name: str) -> None:
    """The same in one compiled function."""
    fused_tree, split_tree = trees()
    adapters, _ = in_row(whole_update(name))
    with jax.enable_x64(True):
        with uncompiled():
            expected = jaxmix.compose(fused_tree, adapters)
        under_jit = jax.jit(lambda tree, mixed: jaxmix.compose(tree, mixed))
        check_split(under_jit(split_tree, jaxmix.mix(*adapters)), expected)


def test_later_updates_read_replaced_parts() -> None:
    """Updates after a replaced k read the new k, on q, k and v as on qkv."""
    fused_tree, split_tree = trees()
    replacement = np.array(fused_tree[f"{FUSED_QKV}.weight"])
    replacement[4:8] = normal(4, 8, seed=3)
    kasa = jaxmix.Adapter({FUSED_QKV: whole_update("KaSA")}, name="kasa")
    with jax.enable_x64(True):
        saved = jaxmix.Adapter({FUSED_QKV: Replace(weight=replacement)}, name="saved")
        expected = jaxmix.compose(fused_tree, [saved, kasa])
        part = jaxmix.Adapter({QKV[1]: Replace(weight=replacement[4:8])}, name="saved")
        check_split(jaxmix.compose(split_tree, [part, kasa]), expected)


def test_fused_leaf_with_an_update_of_one_part() -> None:
    """An update that mixes the rows of qkv and an update of k, on a tree with qkv."""
    fused_tree, split_tree = trees()
    whole = jaxmix.Adapter({FUSED_QKV: whole_update("biases")}, name="whole")
    part = jaxmix.Adapter({QKV[1]: SAMPLES["Together"].draw(np.random.default_rng(2), K)}, name="k")
    with jax.enable_x64(True):
        for order in ([whole, part], [part, whole]):
            actual, expected = (jaxmix.compose(x, order) for x in (split_tree, fused_tree))
            check_split(actual, expected)
        alone = jaxmix.compose(fused_tree, whole)
        both = jaxmix.compose(fused_tree, [whole, part])
        rows = slice(8, 12)
        np.testing.assert_allclose(
            both[f"{FUSED_QKV}.weight"][rows], alone[f"{FUSED_QKV}.weight"][rows], rtol=1e-12
        )


def test_parts_are_donated_and_rounded_once() -> None:
    """Parts in bfloat16 are rounded once, after all updates, and may be donated."""
    fused_tree, split_tree = trees()
    adapters, _ = in_row(whole_update("BOFT of outputs"))
    halves = {name: jnp.asarray(leaf, jnp.bfloat16) for name, leaf in split_tree.items()}
    parts = {name: np.asarray(leaf, np.float32) for name, leaf in halves.items()}
    fused = {
        f"{FUSED_QKV}.{leaf}": np.concatenate([parts[f"{name}.{leaf}"] for name in QKV])
        for leaf in ("weight", "bias")
    }
    assert fused.keys() == fused_tree.keys()
    expected = jaxmix.compose(fused, adapters)
    actual = jaxmix.compose(halves, adapters, donate=True)
    assert actual[f"{QKV[0]}.weight"].dtype == jnp.bfloat16
    actual = {name: leaf.astype(jnp.float32) for name, leaf in actual.items()}
    rounded = {n: jnp.asarray(x).astype(jnp.bfloat16).astype("f4") for n, x in expected.items()}
    check_split(actual, rounded, rtol=0.005)


@pytest.mark.parametrize("axes", [AxisType.Auto, AxisType.Explicit])
def test_parts_keep_their_shardings(axes: AxisType) -> None:
    """Parts on a mesh keep their shardings."""
    fused_tree, split_tree = trees()
    adapters, _ = in_row(whole_update("biases"))
    expected = jaxmix.compose(single(fused_tree), adapters)
    mesh = jax.make_mesh((2,), ("x",), axis_types=(axes,), devices=jax.devices()[:2])
    rows = {1: P("x"), 2: P("x", None)}
    placed = {
        name: jax.device_put(leaf, NamedSharding(mesh, rows[leaf.ndim]))
        for name, leaf in single(split_tree).items()
    }
    with jax.set_mesh(mesh):
        actual = jaxmix.compose(placed, adapters)
    check_split(actual, expected, rtol=1e-4)
    assert {n: x.sharding for n, x in actual.items()} == {n: x.sharding for n, x in placed.items()}


def single(tree: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A tree in float32."""
    return {name: leaf.astype(np.float32) for name, leaf in tree.items()}


def test_parts_with_alternating_rows() -> None:
    """Each part holds every second row of the fused weight."""
    update, ranges = whole_update("KaSA"), ((0, 12, 2), (1, 12, 2))
    sites = {name: PartOf(update, ("q", "k"), ranges, i) for i, name in enumerate("qk")}
    weight = normal(12, 8)
    with jax.enable_x64(True):
        expected = jaxmix.compose({"qk.weight": weight}, jaxmix.Adapter({"qk": update}))
        split = {"q.weight": weight[::2], "k.weight": weight[1::2]}
        actual = jaxmix.compose(split, jaxmix.Adapter(dict(sites)))
    np.testing.assert_allclose(actual["q.weight"], expected["qk.weight"][::2], rtol=1e-9)
    np.testing.assert_allclose(actual["k.weight"], expected["qk.weight"][1::2], rtol=1e-9)
    assert sites["k"].size().endswith(", part 2 of 2")


def test_bias_of_one_part_only() -> None:
    """A bias of one part is mapped like a fused bias that is zero in the other parts."""
    update = whole_update("OFT of outputs")
    rescaling = BOFT(np.zeros((1, 2, 4, 4)), np.arange(12.0))
    fused_tree, split_tree = trees()
    del split_tree[f"{QKV[0]}.bias"], split_tree[f"{QKV[2]}.bias"]
    fused_tree[f"{FUSED_QKV}.bias"][[*range(4), *range(8, 12)]] = 0
    adapter = jaxmix.Adapter({FUSED_QKV: Together((update, rescaling, IA3(np.arange(12.0))))})
    with jax.enable_x64(True):
        expected = jaxmix.compose(fused_tree, adapter)
        actual = jaxmix.compose(split_tree, adapter)
    assert actual.keys() == split_tree.keys()
    bias = expected[f"{FUSED_QKV}.bias"][4:8]
    np.testing.assert_allclose(actual[f"{QKV[1]}.bias"], bias, rtol=1e-9)
    assert not np.allclose(bias, split_tree[f"{QKV[1]}.bias"])


def test_overlapping_fused_weights_are_refused() -> None:
    """Updates of qk and of kv that can't be cut have no common fused weight."""
    update, ranges = whole_update("KaSA"), ((0, 4, 1), (4, 8, 1))
    updates = [
        {name: PartOf(update, tuple(names), ranges, i) for i, name in enumerate(names)}
        for names in ("qk", "kv")
    ]
    with pytest.raises(LayoutError) as caught:
        in_order(updates)
    assert str(caught.value) == (
        "k: one update is applied to q and k together, another to k and v, and neither can be "
        "cut. Merge these adapters one after the other."
    )


def test_uncuttable_update_of_a_stack_is_refused() -> None:
    """An update of a whole stack of experts that can't be cut is refused."""
    tree = {
        f"model.layers.0.block_sparse_moe.experts.{e}.{name}.weight": normal(5, 4)
        for e in range(2)
        for name in ("w1", "w3")
    }
    adapter = jaxmix.Adapter({"model.layers.0.mlp.experts.gate_up_proj": whole_update("KaSA")})
    with pytest.raises(LayoutError) as caught:
        jaxmix.compose(tree, adapter, names="mixtral")
    assert str(caught.value).endswith(
        "so it can't be applied to them separately. Apply it to a model that has the adapter's "
        "names"
    )


def test_only_compose_joins_parts() -> None:
    """`attach` refuses an update that can't be cut, and so does the map of a part."""
    split = {f"{name}.weight": normal(4, 8).astype(np.float32) for name in QKV}
    adapter = jaxmix.Adapter({FUSED_QKV: whole_update("KaSA")})
    with pytest.raises(LayoutError) as caught:
        jaxmix.attach(split, adapter, names="flux")
    assert str(caught.value) == HEAD.format("adapter", "flux", FUSED_QKV) + (
        f"its KaSA mixes numbers of several weights, of which {QKV[0]} is one, so it can't be "
        "applied to them separately. Apply it to a model that has the adapter's names, or merge "
        "it with jaxmix.compose, which joins these weights"
    )
    part = PartOf(whole_update("KaSA"), ("q", "k"), ((0, 1, 1), (1, 2, 1)), 1)
    with pytest.raises(NotImplementedError) as missing:
        part.weight_map(Base(None, (1, 8)), jnp.ones(()))
    assert str(missing.value) == (
        "k: its KaSA is applied to q and k together, so it has no map of its own. The code that "
        "runs maps must join these parts first (jaxmix.apply.joined)."
    )
