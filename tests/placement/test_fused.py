"""Updates of a fused weight that can't be cut, on trees that have its parts."""

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

BLOCK, K = Module("linear", (12, 8), True), Module("linear", (4, 8), True)
QKV = [f"transformer_blocks.0.attn.to_{x}" for x in "qkv"]
HEAD = (
    "adapter '{}': sites that can't be brought to the names of the weights, which are those of "
    "{}:\n  {}: "
)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """Returns random numbers."""
    return np.random.default_rng(seed).normal(size=shape)


def mixing_update(name: str) -> Update:
    """Returns an update of qkv that mixes its rows."""
    rng = np.random.default_rng(7)
    delta = LoRA(rng.normal(size=(2, 8)), rng.normal(size=(12, 2)), 0.5)
    made: dict[str, Update] = {
        "BOFT of outputs": BOFT(
            rng.normal(size=(2, 2, 6, 6)), rng.normal(size=12), butterfly(2, 2, 6), on_output=True
        ),
        "OFT of outputs": DiagOFT(rng.normal(size=(2, 6, 6)), side="out"),
        "Normed by inputs": Normed(delta, 1 + rng.random(8), axis="in"),
        "biases": Together((DiagOFT(rng.normal(size=(2, 6, 6)), side="out"), IA3(np.arange(12.0)))),
    }
    return made[name] if name in made else SAMPLES[name].draw(rng, BLOCK)


WHOLE = ["KaSA", "DEFT", "PEANuT", "FRoD", "BOFT of outputs", "OFT of outputs"]
WHOLE += ["Normed by inputs", "biases"]
FUSED_QKV = "double_blocks.0.img_attn.qkv"


def in_sequence(update: Update, *, ends: bool = True) -> tuple[list[jaxmix.Adapter], list[Any]]:
    """Returns adapters of qkv with others before and after; the same, some only on q, k or v."""
    rng = np.random.default_rng(9)
    made, split = [0.7 * jaxmix.Adapter({FUSED_QKV: update}, name="whole")], []
    before, after = (SAMPLES[name].draw(rng, BLOCK) for name in ("DoRA", "Together"))
    if ends:
        own = [0.4 * jaxmix.Adapter({FUSED_QKV: before}, name="before")]
        made = [*own, *made, jaxmix.Adapter({FUSED_QKV: after}, name="after")]
    for adapter in made:
        if adapter.name == "whole":
            split.append(adapter)
            continue
        update = adapter.updates[FUSED_QKV]
        pieces = [rows_of(update, slice(4 * i, 4 * i + 4), (12, 8)) for i in range(3)]
        sites = {name: piece for name, piece in zip(QKV, pieces, strict=True) if piece is not None}
        assert len(sites) == 3
        split.append(adapter.strength * jaxmix.Adapter(sites, name=adapter.name))
    return made, split


def trees() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Returns qkv with its bias, and the same as q, k and v."""
    weight, bias = normal(12, 8), normal(12, seed=1)
    fused = {f"{FUSED_QKV}.weight": weight, f"{FUSED_QKV}.bias": bias}
    split = {f"{name}.weight": weight[4 * i : 4 * i + 4] for i, name in enumerate(QKV)}
    split |= {f"{name}.bias": bias[4 * i : 4 * i + 4] for i, name in enumerate(QKV)}
    return fused, split


def check_split(found: Any, expected: Any, rtol: float = 1e-9) -> None:
    """Compares q, k and v with the parts of qkv."""
    for leaf in ("weight", "bias"):
        joined = np.concatenate([found[f"{name}.{leaf}"] for name in QKV])
        whole = expected[f"{FUSED_QKV}.{leaf}"]
        np.testing.assert_allclose(joined, whole, rtol=rtol, atol=1e-3 * rtol)


@pytest.mark.parametrize("name", WHOLE)
def test_updates_that_mix_rows(name: str) -> None:
    """Updates that mix rows have the same effect on q, k and v as on qkv, also among others."""
    fused_tree, split_tree = trees()
    adapters, apart_too = in_sequence(mixing_update(name))
    with jax.enable_x64(True):
        expected = jaxmix.compose(fused_tree, adapters)
        check_split(jaxmix.compose(split_tree, adapters), expected)
        check_split(jaxmix.compose(split_tree, apart_too), expected)
        under_jit = jax.jit(lambda tree, mixed: jaxmix.compose(tree, mixed))
        check_split(under_jit(split_tree, jaxmix.mix(*adapters)), expected)
        alone = in_sequence(mixing_update(name), ends=False)[0]
        check_split(jaxmix.compose(split_tree, alone), jaxmix.compose(fused_tree, alone))


def test_replaced_part_of_the_base() -> None:
    """Updates after a replaced k read the new k, on q, k and v as on qkv."""
    fused_tree, split_tree = trees()
    new = np.array(fused_tree[f"{FUSED_QKV}.weight"])
    new[4:8] = normal(4, 8, seed=3)
    kasa = jaxmix.Adapter({FUSED_QKV: mixing_update("KaSA")}, name="kasa")
    with jax.enable_x64(True):
        saved = jaxmix.Adapter({FUSED_QKV: Replace(weight=new)}, name="saved")
        expected = jaxmix.compose(fused_tree, [saved, kasa])
        part = jaxmix.Adapter({QKV[1]: Replace(weight=new[4:8])}, name="saved")
        check_split(jaxmix.compose(split_tree, [part, kasa]), expected)


def test_updates_of_a_leaf_and_of_its_part() -> None:
    """On a tree with qkv: an update that mixes its rows, and one of k."""
    fused_tree, split_tree = trees()
    whole = jaxmix.Adapter({FUSED_QKV: mixing_update("biases")}, name="whole")
    part = jaxmix.Adapter({QKV[1]: SAMPLES["Together"].draw(np.random.default_rng(2), K)}, name="k")
    with jax.enable_x64(True):
        for order in ([whole, part], [part, whole]):
            found, expected = (jaxmix.compose(x, order) for x in (split_tree, fused_tree))
            check_split(found, expected)
        alone = jaxmix.compose(fused_tree, whole)
        first = jaxmix.compose(fused_tree, [whole, part])
        rows = slice(8, 12)
        np.testing.assert_allclose(
            first[f"{FUSED_QKV}.weight"][rows], alone[f"{FUSED_QKV}.weight"][rows], rtol=1e-12
        )


def test_donation_and_single_rounding() -> None:
    """Buffers are donated, in a dtype in which each step would round."""
    fused_tree, split_tree = trees()
    adapters, _ = in_sequence(mixing_update("BOFT of outputs"))
    halves = {name: jnp.asarray(leaf, jnp.bfloat16) for name, leaf in split_tree.items()}
    kept = {name: np.asarray(leaf, np.float32) for name, leaf in halves.items()}
    whole = {
        f"{FUSED_QKV}.{leaf}": np.concatenate([kept[f"{name}.{leaf}"] for name in QKV])
        for leaf in ("weight", "bias")
    }
    assert whole.keys() == fused_tree.keys()
    expected = jaxmix.compose(whole, adapters)
    found = jaxmix.compose(halves, adapters, donate=True)
    assert found[f"{QKV[0]}.weight"].dtype == jnp.bfloat16
    found = {name: leaf.astype(jnp.float32) for name, leaf in found.items()}
    rounded = {n: jnp.asarray(x).astype(jnp.bfloat16).astype("f4") for n, x in expected.items()}
    check_split(found, rounded, rtol=0.005)


@pytest.mark.parametrize("axes", [AxisType.Auto, AxisType.Explicit])
def test_sharded_parts_keep_their_shardings(axes: AxisType) -> None:
    """Parts on a mesh keep their shardings."""
    fused_tree, split_tree = trees()
    adapters, _ = in_sequence(mixing_update("biases"))
    expected = jaxmix.compose(single(fused_tree), adapters)
    mesh = jax.make_mesh((2,), ("x",), axis_types=(axes,), devices=jax.devices()[:2])
    rows = {1: P("x"), 2: P("x", None)}
    placed = {
        name: jax.device_put(leaf, NamedSharding(mesh, rows[leaf.ndim]))
        for name, leaf in single(split_tree).items()
    }
    with jax.set_mesh(mesh):
        composed = jaxmix.compose(placed, adapters)
    check_split(composed, expected, rtol=1e-4)
    assert {n: x.sharding for n, x in composed.items()} == {
        n: x.sharding for n, x in placed.items()
    }


def single(tree: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns a tree in float32."""
    return {name: leaf.astype(np.float32) for name, leaf in tree.items()}


def test_alternating_rows() -> None:
    """Parts may hold every second row of the fused weight."""
    update, ranges = mixing_update("KaSA"), ((0, 12, 2), (1, 12, 2))
    sites = {name: PartOf(update, ("q", "k"), ranges, i) for i, name in enumerate("qk")}
    weight = normal(12, 8)
    with jax.enable_x64(True):
        expected = jaxmix.compose({"qk.weight": weight}, jaxmix.Adapter({"qk": update}))
        split = {"q.weight": weight[::2], "k.weight": weight[1::2]}
        composed = jaxmix.compose(split, jaxmix.Adapter(dict(sites)))
    np.testing.assert_allclose(composed["q.weight"], expected["qk.weight"][::2], rtol=1e-9)
    np.testing.assert_allclose(composed["k.weight"], expected["qk.weight"][1::2], rtol=1e-9)
    assert sites["k"].size().endswith(", part 2 of 2")


def test_parts_without_a_bias() -> None:
    """If only one part has a bias, the others' biases count as zeros."""
    update = mixing_update("OFT of outputs")
    turned = BOFT(np.zeros((1, 2, 4, 4)), np.arange(12.0))
    fused_tree, split_tree = trees()
    del split_tree[f"{QKV[0]}.bias"], split_tree[f"{QKV[2]}.bias"]
    fused_tree[f"{FUSED_QKV}.bias"][[*range(4), *range(8, 12)]] = 0
    adapter = jaxmix.Adapter({FUSED_QKV: Together((update, turned, IA3(np.arange(12.0))))})
    with jax.enable_x64(True):
        expected = jaxmix.compose(fused_tree, adapter)
        composed = jaxmix.compose(split_tree, adapter)
    assert composed.keys() == split_tree.keys()
    bias = expected[f"{FUSED_QKV}.bias"][4:8]
    np.testing.assert_allclose(composed[f"{QKV[1]}.bias"], bias, rtol=1e-9)
    assert not np.allclose(bias, split_tree[f"{QKV[1]}.bias"])


def test_overlapping_fused_weights_are_refused() -> None:
    """Updates of qk and of kv that can't be cut have no common fused weight."""
    update, ranges = mixing_update("KaSA"), ((0, 4, 1), (4, 8, 1))
    found = [
        {name: PartOf(update, tuple(names), ranges, i) for i, name in enumerate(names)}
        for names in ("qk", "kv")
    ]
    with pytest.raises(LayoutError) as caught:
        in_order(found)
    assert str(caught.value) == (
        "k: one update is applied to q and k together, another to k and v, and neither can be "
        "cut. Merge these adapters one after the other."
    )


def test_experts_are_not_joined() -> None:
    """An update of a stack of experts that can't be cut is refused."""
    tree = {
        f"model.layers.0.block_sparse_moe.experts.{e}.{name}.weight": normal(5, 4)
        for e in range(2)
        for name in ("w1", "w3")
    }
    adapter = jaxmix.Adapter({"model.layers.0.mlp.experts.gate_up_proj": mixing_update("KaSA")})
    with pytest.raises(LayoutError) as caught:
        jaxmix.compose(tree, adapter, names="mixtral")
    assert str(caught.value).endswith(
        "so it can't be applied to them separately. Apply it to a model under the names of the "
        "adapter"
    )


def test_only_compose_joins_weights() -> None:
    """Other functions refuse such updates with advice."""
    split = {f"{name}.weight": normal(4, 8).astype(np.float32) for name in QKV}
    adapter = jaxmix.Adapter({FUSED_QKV: mixing_update("KaSA")})
    with pytest.raises(LayoutError) as caught:
        jaxmix.attach(split, adapter, names="flux")
    assert str(caught.value) == HEAD.format("adapter", "flux", FUSED_QKV) + (
        f"its KaSA mixes numbers of several weights, of which {QKV[0]} is one, so it can't be "
        "applied to them separately. Apply it to a model under the names of the adapter, or merge "
        "it with jaxmix.compose, which joins these weights"
    )
    part = PartOf(mixing_update("KaSA"), ("q", "k"), ((0, 1, 1), (1, 2, 1)), 1)
    with pytest.raises(NotImplementedError) as missing:
        part.weight_map(Base(None, (1, 8)), jnp.ones(()))
    assert str(missing.value) == (
        "k: its KaSA is applied to q and k together, so it has no map of its own. The code that "
        "runs maps must join these parts first (jaxmix.apply.joined)."
    )
