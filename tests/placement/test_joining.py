"""LoRAs brought to the names that modules have in memory: joined or split, with equal effect."""

from pathlib import Path

import jax
import numpy as np
import pytest

import jaxmix
from jaxmix.errors import LayoutError, UnsupportedError
from jaxmix.families import ExpertLoRA, LoHa, LoRA
from jaxmix.layout import map_named
from jaxmix.placement.joining import with_memory_names

from ..messages import full_text
from .test_cutting import APART, FUSED, INNER, WIDTH, E, fused, normal, of_experts


def composed(adapter: jaxmix.Adapter) -> dict[str, np.ndarray]:
    """A tree of stacked experts with the adapter merged."""
    with jax.enable_x64(True):
        return jaxmix.compose(fused(), adapter, names="mixtral")


def test_experts_are_joined() -> None:
    """Smaller ranks are padded; a matrix without a LoRA adds nothing."""
    updates = dict(of_experts().updates)
    updates[f"{APART}.1.w1"] = LoRA(normal(3, WIDTH, seed=1), normal(INNER, 3, seed=2), 0.25)
    del updates[f"{APART}.0.w2"]
    joined = with_memory_names(updates, map_named("mixtral"))
    assert {site: update.size() for site, update in joined.items()} == {
        f"{FUSED}.gate_up_proj": f"{E} × rank 4",
        f"{FUSED}.down_proj": f"{E} × rank 1",
    }
    expected, actual = composed(jaxmix.Adapter(updates)), composed(jaxmix.Adapter(joined))
    for name, leaf in expected.items():
        np.testing.assert_allclose(actual[name], leaf, rtol=1e-12)


def test_modules_are_in_the_order_of_the_model() -> None:
    """PEFT nests the parameters of a module in the model's order, not the file's."""
    lora = LoRA(np.ones((1, WIDTH)), np.ones((INNER, 1)), 1.0)
    at = "model.layers.0.mlp.experts.0."
    joined = with_memory_names(
        {f"{at}{name}": lora for name in ("down_proj", "gate_proj", "up_proj")},
        map_named("qwen3_moe"),
    )
    assert [site.rpartition(".")[2] for site in joined] == ["gate_up_proj", "down_proj"]


def test_one_of_two_parts() -> None:
    """LoRAs of w3 alone: its rows are the second half of the joined weight."""
    up_projections = {
        site: update for site, update in of_experts().updates.items() if site.endswith("w3")
    }
    (joined,) = with_memory_names(up_projections, map_named("mixtral")).values()
    assert isinstance(joined, ExpertLoRA) and joined.b.shape == (E, 2 * INNER, 1)
    assert not np.asarray(joined.b)[:, :INNER].any() and np.asarray(joined.b)[:, INNER:].any()


def test_fused_projection_is_split() -> None:
    """A stays complete and B is cut by rows; other modules are only renamed."""
    qkv, out = LoRA(normal(2, 4), normal(9, 2), 0.5), LoRA(normal(2, 4), normal(4, 2), 0.5)
    sites = {"blocks.0.attn.qkv": qkv, "double_blocks.0.img_attn.qkv": qkv}
    sites |= {"double_blocks.0.img_attn.proj": out}
    split = with_memory_names(sites, map_named("flux"))
    assert split["blocks.0.attn.qkv"] is qkv and split["transformer_blocks.0.attn.to_out.0"] is out
    for i, name in enumerate("qkv"):
        update = split[f"transformer_blocks.0.attn.to_{name}"]
        assert isinstance(update, LoRA) and update.a is qkv.a
        np.testing.assert_array_equal(update.b, qkv.b[3 * i : 3 * i + 3])


def test_export_reads_back(tmp_path: Path) -> None:
    """The exported folder has target_parameters, and the loaded adapter has the same effect."""
    folder = jaxmix.export_peft(of_experts(), tmp_path / "lora", names="mixtral")
    loaded = jaxmix.load(folder, base=fused())
    assert set(loaded.sites) == {f"{FUSED}.gate_up_proj", f"{FUSED}.down_proj"}
    expected, actual = composed(of_experts()), composed(loaded)
    for name, leaf in expected.items():
        np.testing.assert_allclose(actual[name], leaf, rtol=1e-6, atol=1e-6)


def test_updates_that_cannot_be_joined(tmp_path: Path) -> None:
    """Only plain LoRAs can be joined; the error lists the others."""
    a, b = np.ones((1, WIDTH)), np.ones((INNER, 1))
    sites = {
        f"{APART}.0.w1": LoRA(a, b, 1.0, magnitude=np.ones(INNER)),
        f"{APART}.0.w3": LoHa(b, a, b, a, 1.0),
    }
    with pytest.raises(UnsupportedError) as caught:
        jaxmix.export_peft(jaxmix.Adapter(sites), tmp_path / "out", names="mixtral")
    assert str(caught.value) == (
        "updates that can't be joined or split as the weights of mixtral are in memory:\n"
        f"  {APART}.0.w1: LoRA, for {FUSED}.gate_up_proj in memory\n"
        f"  {APART}.0.w3: LoHa, for {FUSED}.gate_up_proj in memory\n"
        "Plain LoRAs can: jaxmix.to_lora(mix, params) makes one of any mix."
    )
    with pytest.raises(
        LayoutError,
        match=full_text(
            "there is no name map 'mixtrall', expected the model_type of "
            "one of transformers' models, such as 'mixtral', '' for no "
            "map, or nothing to find it."
        ),
    ):
        jaxmix.export_peft(of_experts(), tmp_path / "out", names="mixtrall")
    assert not (tmp_path / "out").exists()
