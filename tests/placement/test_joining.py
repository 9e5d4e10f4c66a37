"""LoRAs under the names of modules in memory: joined, split, and the same function."""

from pathlib import Path

import jax
import numpy as np
import pytest

import jaxmix
from jaxmix.errors import LayoutError, UnsupportedError
from jaxmix.families import ExpertLoRA, LoHa, LoRA
from jaxmix.layout import map_named
from jaxmix.placement.joining import with_memory_names

from .test_cutting import APART, FUSED, INNER, WIDTH, E, fused, normal, of_experts


def composed(adapter: jaxmix.Adapter) -> dict[str, np.ndarray]:
    """Returns the experts of a stack with an adapter."""
    with jax.enable_x64(True):
        return jaxmix.compose(fused(), adapter, names="mixtral")


def test_experts_are_joined() -> None:
    """Different ranks are padded, and a matrix without a LoRA adds nothing."""
    updates = dict(of_experts().updates)
    updates[f"{APART}.1.w1"] = LoRA(normal(3, WIDTH, seed=1), normal(INNER, 3, seed=2), 0.25)
    del updates[f"{APART}.0.w2"]
    renamed = with_memory_names(updates, map_named("mixtral"))
    assert {site: update.size() for site, update in renamed.items()} == {
        f"{FUSED}.gate_up_proj": f"{E} × rank 4",
        f"{FUSED}.down_proj": f"{E} × rank 1",
    }
    expected, found = composed(jaxmix.Adapter(updates)), composed(jaxmix.Adapter(renamed))
    for name, leaf in expected.items():
        np.testing.assert_allclose(found[name], leaf, rtol=1e-12)


def test_parameters_have_the_models_order() -> None:
    """PEFT nests the parameters of a module in the model's order, not the file's."""
    update = LoRA(np.ones((1, WIDTH)), np.ones((INNER, 1)), 1.0)
    at = "model.layers.0.mlp.experts.0."
    renamed = with_memory_names(
        {f"{at}{name}": update for name in ("down_proj", "gate_proj", "up_proj")},
        map_named("qwen3_moe"),
    )
    assert [site.rpartition(".")[2] for site in renamed] == ["gate_up_proj", "down_proj"]


def test_single_part_is_joined() -> None:
    """LoRAs of w3 alone fill the second half of the joined weight's rows."""
    only = {site: update for site, update in of_experts().updates.items() if site.endswith("w3")}
    (made,) = with_memory_names(only, map_named("mixtral")).values()
    assert isinstance(made, ExpertLoRA) and made.b.shape == (E, 2 * INNER, 1)
    assert not np.asarray(made.b)[:, :INNER].any() and np.asarray(made.b)[:, INNER:].any()


def test_fused_projection_is_split() -> None:
    """A is kept, B is cut by rows; other sites are only renamed."""
    qkv, out = LoRA(normal(2, 4), normal(9, 2), 0.5), LoRA(normal(2, 4), normal(4, 2), 0.5)
    sites = {"blocks.0.attn.qkv": qkv, "double_blocks.0.img_attn.qkv": qkv}
    sites |= {"double_blocks.0.img_attn.proj": out}
    renamed = with_memory_names(sites, map_named("flux"))
    assert (
        renamed["blocks.0.attn.qkv"] is qkv and renamed["transformer_blocks.0.attn.to_out.0"] is out
    )
    for i, name in enumerate("qkv"):
        update = renamed[f"transformer_blocks.0.attn.to_{name}"]
        assert isinstance(update, LoRA) and update.a is qkv.a
        np.testing.assert_array_equal(update.b, qkv.b[3 * i : 3 * i + 3])


def test_exported_folder_computes_the_same(tmp_path: Path) -> None:
    """PEFT's folder has target_parameters, and computes the same."""
    folder = jaxmix.export_peft(of_experts(), tmp_path / "lora", names="mixtral")
    again = jaxmix.load(folder, base=fused())
    assert set(again.sites) == {f"{FUSED}.gate_up_proj", f"{FUSED}.down_proj"}
    expected, found = composed(of_experts()), composed(again)
    for name, leaf in expected.items():
        np.testing.assert_allclose(found[name], leaf, rtol=1e-6, atol=1e-6)


def test_updates_that_cannot_be_joined_are_listed(tmp_path: Path) -> None:
    """Only plain LoRAs are joined; the error lists the others."""
    a, b = np.ones((1, WIDTH)), np.ones((INNER, 1))
    sites = {
        f"{APART}.0.w1": LoRA(a, b, 1.0, magnitude=np.ones(INNER)),
        f"{APART}.0.w3": LoHa(b, a, b, a, 1.0),
    }
    with pytest.raises(UnsupportedError) as caught:
        jaxmix.export_peft(jaxmix.Adapter(sites), tmp_path / "out", names="mixtral")
    assert str(caught.value) == (
        "updates that can't be joined or split as mixtral is in memory:\n"
        f"  {APART}.0.w1: LoRA, for {FUSED}.gate_up_proj in memory\n"
        f"  {APART}.0.w3: LoHa, for {FUSED}.gate_up_proj in memory\n"
        "Plain LoRAs can: jaxmix.to_lora makes one of any mix."
    )
    with pytest.raises(LayoutError, match="there is no name map 'mixtrall'"):
        jaxmix.export_peft(of_experts(), tmp_path / "out", names="mixtrall")
    assert not (tmp_path / "out").exists()
