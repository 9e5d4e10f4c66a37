"""Adapters on trees in which a site's weight is several leaves, or a part of one."""

from typing import Any

import jax
import numpy as np
import pytest

import jaxmix
from jaxmix.errors import LayoutError
from jaxmix.families import ExpertLoRA, LoRA, Update

from ..families.module import Module
from ..families.table import SAMPLES

E, INNER, WIDTH = 3, 5, 4
FUSED = "model.layers.0.mlp.experts"
APART = "model.layers.0.block_sparse_moe.experts"


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """Random numbers."""
    return np.random.default_rng(seed).normal(size=shape)


def fused() -> dict[str, np.ndarray]:
    """Mixtral's experts as transformers 5 has them in memory."""
    return {
        f"{FUSED}.gate_up_proj": normal(E, 2 * INNER, WIDTH, seed=1),
        f"{FUSED}.down_proj": normal(E, WIDTH, INNER, seed=2),
        "model.layers.0.self_attn.q_proj.weight": normal(WIDTH, WIDTH, seed=3),
    }


def apart(tree: dict[str, Any]) -> dict[str, Any]:
    """The same tensors under their names on disk."""
    out = {"model.layers.0.self_attn.q_proj.weight": tree["model.layers.0.self_attn.q_proj.weight"]}
    for e in range(E):
        gate_up, down = tree[f"{FUSED}.gate_up_proj"][e], tree[f"{FUSED}.down_proj"][e]
        out[f"{APART}.{e}.w1.weight"] = gate_up[:INNER]
        out[f"{APART}.{e}.w3.weight"] = gate_up[INNER:]
        out[f"{APART}.{e}.w2.weight"] = down
    return out


def of_parameters() -> jaxmix.Adapter:
    """A LoRA of PEFT's target_parameters, whose sites are names in memory."""
    updates = {
        "gate_up_proj": ExpertLoRA(
            normal(E, 2, WIDTH, seed=4), normal(E, 2 * INNER, 2, seed=5), 0.5
        ),
        "down_proj": ExpertLoRA(normal(E, 2, INNER, seed=6), normal(E, WIDTH, 2, seed=7), 0.5),
    }
    return jaxmix.Adapter(
        {f"{FUSED}.{name}": update for name, update in updates.items()}, name="all"
    )


def of_experts() -> jaxmix.Adapter:
    """A LoRA for each matrix of each expert, by the names on disk."""
    sizes = {"w1": (INNER, WIDTH), "w2": (WIDTH, INNER), "w3": (INNER, WIDTH)}
    updates = {
        f"{APART}.{e}.{name}": LoRA(
            normal(1, n, seed=8 + e), normal(m, 1, seed=20 + e + ord(name[1])), 2.0
        )
        for e in range(E)
        for name, (m, n) in sizes.items()
    }
    return jaxmix.Adapter(updates, name="each")


@pytest.mark.parametrize("adapters", ["all", "each", "all, each", "each, all"])
def test_stacked_and_separate_experts(adapters: str) -> None:
    """Stacked and per-expert factors give the same result on a stack and on separate experts."""
    mixes = {"all": [of_parameters()], "each": [0.5 * of_experts()]}
    mixes |= {"all, each": mixes["all"] + mixes["each"], "each, all": mixes["each"] + mixes["all"]}
    with jax.enable_x64(True):
        on_stack = jaxmix.compose(fused(), mixes[adapters], names="mixtral")
        on_each = jaxmix.compose(apart(fused()), mixes[adapters], names="mixtral")
    for name, expected in apart(on_stack).items():
        np.testing.assert_allclose(on_each[name], expected, rtol=1e-12)
    expected_stack = {name: leaf.copy() for name, leaf in fused().items()}
    for adapter in mixes[adapters]:
        for site, update in adapter.updates.items():
            if isinstance(update, ExpertLoRA):
                expected_stack[site] += 0.5 * update.b @ update.a
            elif isinstance(update, LoRA):
                expert, name = site.split(".")[-2:]
                leaf = "down_proj" if name == "w2" else "gate_up_proj"
                rows = {"w1": slice(0, INNER), "w3": slice(INNER, None)}.get(name, slice(None))
                delta = adapter.strength * update.scale * update.b @ update.a
                expected_stack[f"{FUSED}.{leaf}"][int(expert), rows] += delta
    for name, expected in expected_stack.items():
        np.testing.assert_allclose(on_stack[name], expected, rtol=1e-12)


def test_map_is_inferred_from_the_names() -> None:
    """Without names= the only map under which all sites have a leaf is used."""
    tree = {name: leaf.astype(np.float32) for name, leaf in apart(fused()).items()}
    inferred = jaxmix.compose(tree, of_parameters())
    named = jaxmix.compose(tree, of_parameters(), names="mixtral")
    for name, leaf in named.items():
        np.testing.assert_array_equal(inferred[name], leaf)


def test_unmerged_experts_match() -> None:
    """Factored leaves of separate experts compute the same as composed ones."""
    tree = {name: leaf.astype(np.float32) for name, leaf in apart(fused()).items()}
    adapter = of_parameters()
    leaves = jaxmix.attach(tree, adapter, names="mixtral")

    def run(params: Any, x: Any) -> Any:
        return x @ params[f"{APART}.1.w3.weight"].T

    x = normal(2, WIDTH).astype(np.float32)
    merged = jaxmix.compose(tree, adapter, names="mixtral")
    np.testing.assert_allclose(
        jaxmix.factored(run)(leaves, x), run(merged, x), rtol=1e-4, atol=1e-5
    )


BLOCK = Module("linear", (12, 8), True)
QKV = [f"transformer_blocks.0.attn.to_{x}" for x in "qkv"]


@pytest.mark.one_of(2)
@pytest.mark.parametrize("family", ["LoRA", "DoRA", "LoHa", "LoKr", "Normed", "OFT", "Together"])
@pytest.mark.parametrize("is_split", [True, False], ids=["split", "fused"])
def test_fused_projection_on_its_parts_and_back(family: str, is_split: bool) -> None:
    """An update of Flux's qkv on q, k and v, and updates of q, k and v on qkv."""
    rng = np.random.default_rng(5)
    update, extra = SAMPLES[family].draw(rng, BLOCK), SAMPLES["LoRA"].draw(rng, BLOCK)
    weight, bias = normal(12, 8), normal(12)
    original = {"double_blocks.0.img_attn.qkv.weight": weight}
    original |= {"double_blocks.0.img_attn.qkv.bias": bias}
    parts = {}
    for i, name in enumerate(QKV):
        parts |= {
            f"{name}.weight": weight[4 * i : 4 * i + 4],
            f"{name}.bias": bias[4 * i : 4 * i + 4],
        }
    with jax.enable_x64(True):
        if is_split:
            updates: dict[str, Update] = {"double_blocks.0.img_attn.qkv": update}
            extra_updates = {"double_blocks.0.img_attn.qkv": extra}
            adapters = [
                jaxmix.Adapter(updates, name="a"),
                0.3 * jaxmix.Adapter(extra_updates, name="b"),
            ]
            on_fused, on_parts = jaxmix.compose(original, adapters), jaxmix.compose(parts, adapters)
        else:
            block = Module("linear", (4, 8), True)
            updates = {name: SAMPLES[family].draw(rng, block) for name in QKV}
            adapter = jaxmix.Adapter(updates)
            on_parts, on_fused = jaxmix.compose(parts, adapter), jaxmix.compose(original, adapter)
    for leaf in ("weight", "bias"):
        concatenated = np.concatenate([on_parts[f"{name}.{leaf}"] for name in QKV])
        expected_leaf = on_fused[f"double_blocks.0.img_attn.qkv.{leaf}"]
        np.testing.assert_allclose(concatenated, expected_leaf, rtol=1e-9, atol=1e-12)


def test_swapped_halves() -> None:
    """The shift and scale of Flux's last modulation are swapped."""
    update = LoRA(normal(1, 4, seed=1), normal(6, 1, seed=2), 1.0)
    by_site = {"final_layer.adaLN_modulation.1": update}
    in_diffusers = jaxmix.compose(
        {"norm_out.linear.weight": np.zeros((6, 4), np.float32)}, jaxmix.Adapter(by_site)
    )
    delta = update.b @ update.a
    swapped = np.concatenate([delta[3:], delta[:3]])
    np.testing.assert_allclose(in_diffusers["norm_out.linear.weight"], swapped, rtol=1e-5)
    in_original = jaxmix.compose(
        {"final_layer.adaLN_modulation.1.weight": np.zeros((6, 4), np.float32)},
        jaxmix.Adapter({"norm_out.linear": update}),
    )
    np.testing.assert_allclose(
        in_original["final_layer.adaLN_modulation.1.weight"], swapped, rtol=1e-5
    )


def refused(params: Any, adapter: jaxmix.Adapter, names: str) -> str:
    """The message with which compose refuses the adapter."""
    with pytest.raises(LayoutError) as caught:
        jaxmix.compose(params, adapter, names=names)
    return str(caught.value)


HEAD = (
    "adapter '{}': sites that can't be mapped to the weights, which have the names of {}:\n  {}: "
)


def test_wrong_number_of_experts_is_refused() -> None:
    """Factors of three experts do not fit two."""
    tree = {name: leaf for name, leaf in apart(fused()).items() if f".experts.{E - 1}." not in name}
    message = refused(tree, of_parameters(), "mixtral")
    assert message.startswith(HEAD.format("all", "mixtral", f"{FUSED}.gate_up_proj"))
    assert "the adapter has factors of 3 experts, expected 2" in message


def test_missing_part_is_reported() -> None:
    """The experts lack one of the two matrices of a stack."""
    tree = {name: leaf for name, leaf in apart(fused()).items() if not name.endswith("w3.weight")}
    message = refused(tree, of_parameters(), "mixtral")
    assert f"only 1 of the 2 weights of {FUSED}.gate_up_proj are present" in message


def test_missing_part_of_a_split_weight_is_reported() -> None:
    """The base lacks the values into which Flux's fused weight is split."""
    block = "transformer_blocks.0.attn"
    tree = {f"{block}.{name}.weight": np.zeros((4, 4), np.float32) for name in ("to_q", "to_k")}
    update = LoRA(normal(1, 4, seed=1), normal(12, 1, seed=2), 1.0)
    site = "double_blocks.0.img_attn.qkv"
    message = refused(tree, jaxmix.Adapter({site: update}, name="all"), "flux")
    expected = "only 2 of the 3 weights it is split into are present"
    assert message.startswith(HEAD.format("all", "flux", site) + expected)


def test_two_names_of_one_module_are_refused() -> None:
    """One adapter names the same weight in both schemes."""
    update = LoRA(np.ones((1, 8)), np.ones((4, 1)), 1.0)
    sites = {"blocks.0.self_attn.q": update, "blocks.0.attn1.to_q": update}
    message = refused({"blocks.0.attn1.to_q.weight": np.ones((4, 8))}, jaxmix.Adapter(sites), "wan")
    assert message == (
        "adapter 'adapter': sites that match the weights' modules in several ways:\n"
        "  blocks.0.attn1.to_q: blocks.0.self_attn.q and blocks.0.attn1.to_q\n"
        "The names in memory are those of the name map wan. Rename the adapter's sites to those "
        "of the weights, or disable the map: names=''."
    )


def test_sites_without_a_map_are_reported() -> None:
    """The error says which name maps were tried."""
    adapter = jaxmix.Adapter({"nowhere.proj": LoRA(np.ones((1, 8)), np.ones((4, 1)), 1.0)})
    with pytest.raises(LayoutError) as caught:
        jaxmix.compose({"proj.weight": np.ones((4, 8))}, adapter)
    assert str(caught.value).endswith("No name map matches all of them to leaves.")
    message = refused({"proj.weight": np.ones((4, 8))}, adapter, "bert")
    assert message.endswith(
        "\nNames were also compared by the name map of bert:\n"
        "  nowhere.proj: bert.nowhere.proj\nFor another model, pass its type: names='…'."
    )


def test_overlapping_updates_of_one_adapter_are_refused() -> None:
    """Two updates of one adapter for the same rows are an error; none is dropped."""
    qkv = LoRA(np.ones((1, 4)), np.ones((6, 1)), 1.0)
    q = LoRA(np.ones((1, 4)), np.ones((2, 1)), 1.0)
    sites = {"double_blocks.0.img_attn.qkv": qkv, "transformer_blocks.0.attn.to_q": q}
    base = {"double_blocks.0.img_attn.qkv.weight": np.ones((6, 4))}
    with pytest.raises(LayoutError) as caught:
        jaxmix.compose(base, jaxmix.Adapter(sites))
    assert str(caught.value) == (
        "double_blocks.0.img_attn.qkv: the same adapter changes a part of it, "
        "double_blocks.0.img_attn.qkv[0:2]. Give its rows one update."
    )
