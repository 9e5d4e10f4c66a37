"""Merges of adapters whose sites have the names of modules in memory."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jaxmix
from jaxmix.converters.checkpoints.huggingface import read_checkpoint
from jaxmix.converters.names import matching, with_stored_names
from jaxmix.errors import LayoutError
from jaxmix.families import LoRA
from jaxmix.placement.layout import NAMES
from jaxmix.placement.name_map import NameMap
from jaxmix.placement.transforms import Transform

from ...messages import full_text

LLAVA = {"architectures": ["LlavaForConditionalGeneration"], "model_type": "llava"}
ON_DISK = "language_model.model.layers.{}.mlp.up_proj"
IN_MEMORY = "model.language_model.layers.{}.mlp.up_proj"


def base_of(folder: Path, names: list[str], config: dict[str, Any] | None) -> Path:
    """A checkpoint of weights (3, 2) with these names."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    tensors = {name: rng.normal(size=(3, 2)).astype(np.float32) for name in names}
    save_file(tensors, folder / "model.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def lora(*sites: str) -> jaxmix.Adapter:
    """A LoRA of rank 1 with other factors at each site."""
    rng = np.random.default_rng(1)
    updates = {
        site: LoRA(
            a=rng.normal(size=(1, 2)).astype(np.float32),
            b=rng.normal(size=(3, 1)).astype(np.float32),
            scale=0.5,
        )
        for site in sites
    }
    return jaxmix.Adapter(updates, name="style")


@pytest.mark.parametrize("spelling", [IN_MEMORY, ON_DISK], ids=["in memory", "on disk"])
def test_both_names_merge(spelling: str, tmp_path: Path) -> None:
    """The merge has the same result, and verifies, for either name that the adapter has."""
    names = [f"{ON_DISK.format(i)}.weight" for i in range(2)]
    base = base_of(tmp_path / "base", names, LLAVA)
    adapter = lora(*(spelling.format(i) for i in range(2)))
    merged = jaxmix.merge_checkpoint(base, adapter, tmp_path / "out", verify=True)
    assert set(merged.changed) == set(names)
    before, after = (
        load_file(base / "model.safetensors"),
        load_file(tmp_path / "out/model.safetensors"),
    )
    for update, name in zip(adapter.updates.values(), names, strict=True):
        assert isinstance(update, LoRA)
        truth = before[name] + 0.5 * np.asarray(update.b) @ np.asarray(update.a)
        np.testing.assert_allclose(after[name], truth, rtol=1e-6)
    assert jaxmix.verify_merge(base, adapter, tmp_path / "out").ok


@pytest.mark.parametrize(
    ("stored", "site"),
    [("bert.encoder.q", "encoder.q"), ("encoder.q", "bert.encoder.q")],
    ids=["added", "removed"],
)
def test_base_prefix_is_optional(stored: str, site: str, tmp_path: Path) -> None:
    """An adapter of the base model merges into a model with a head, and the reverse."""
    config = {"architectures": ["BertForMaskedLM"], "model_type": "bert"}
    base = base_of(tmp_path / "base", [f"{stored}.weight"], config)
    merged = jaxmix.merge_checkpoint(base, lora(site), tmp_path / "out")
    assert merged.changed == (f"{stored}.weight",)


@pytest.mark.parametrize("config", [None, {**LLAVA, "auto_map": {"AutoModel": "x.y"}}])
def test_map_is_inferred_without_a_config(config: dict[str, Any] | None, tmp_path: Path) -> None:
    """Without a config, or with custom code, the only map under which all sites match is used."""
    base = base_of(tmp_path / "base", [f"{ON_DISK.format(0)}.weight"], config)
    merged = jaxmix.merge_checkpoint(base, lora(IN_MEMORY.format(0)), tmp_path / "out")
    assert merged.changed == (f"{ON_DISK.format(0)}.weight",)


def test_names_disable_or_choose_the_map(tmp_path: Path) -> None:
    """An empty string disables it; a model type chooses its map; an unknown one is an error."""
    base = base_of(tmp_path / "base", [f"{ON_DISK.format(0)}.weight"], LLAVA)
    adapter = lora(IN_MEMORY.format(0))
    message = (
        "1 site of the adapters can't be placed in the params by the layout 'names':\n"
        f"  {IN_MEMORY.format(0)}: no leaf for its weight; the nearest are "
        f"{ON_DISK.format(0)}.weight\n"
        "Was the adapter trained on another model? If the leaves have other names, pass "
        "layout=jaxmix.Layout(…) with rules. No name map matches all of them to leaves."
    )
    with pytest.raises(LayoutError, match=full_text(message)):
        jaxmix.merge_checkpoint(base, adapter, tmp_path / "out", names="")
    jaxmix.merge_checkpoint(base, adapter, tmp_path / "out", names="llava")
    with pytest.raises(LayoutError) as caught:
        jaxmix.merge_checkpoint(base, adapter, tmp_path / "other", names="lava")
    assert str(caught.value) == (
        "there is no name map 'lava', expected the model_type of one of transformers' models, such "
        "as 'mixtral', '' for no map, or nothing to find it."
    )


def test_model_renamed_by_code(tmp_path: Path) -> None:
    """Its names are compared as they are: another model's map would be a guess."""
    base = base_of(tmp_path / "base", [f"{ON_DISK.format(0)}.weight"], {"model_type": "dory"})
    with pytest.raises(
        LayoutError,
        match=full_text(
            "1 site of the adapters can't be placed in the params by the "
            "layout 'names':\n"
            "  model.language_model.layers.0.mlp.up_proj: no leaf for "
            "its weight; the nearest are "
            "language_model.model.layers.0.mlp.up_proj.weight\n"
            "Was the adapter trained on another model? If the leaves "
            "have other names, pass layout=jaxmix.Layout(…) with rules. "
            "No name map matches all of them to leaves."
        ),
    ):
        jaxmix.merge_checkpoint(base, lora(IN_MEMORY.format(0)), tmp_path / "out")


def test_site_that_matches_two_modules(tmp_path: Path) -> None:
    """Both names are on disk; one error lists them."""
    names = ["encoder.layer.0.q.LayerNorm", "layers.0.q.LayerNorm", "layers.0.other"]
    config = {"architectures": ["ViTModel"], "model_type": "vit"}
    base = base_of(tmp_path / "base", [f"{name}.weight" for name in names], config)
    checkpoint = read_checkpoint(base)
    adapter = lora("vit.layers.0.q.LayerNorm")
    with pytest.raises(LayoutError) as caught:
        with_stored_names(jaxmix.mix(adapter), checkpoint, NAMES)
    assert str(caught.value) == (
        "adapter 'style': sites that match the weights' modules in several ways:\n"
        "  vit.layers.0.q.LayerNorm: encoder.layer.0.q.LayerNorm and layers.0.q.LayerNorm\n"
        "The names in memory are those of the name map vit. Rename the adapter's sites to those "
        "of the weights, or disable the map: names=''."
    )


def test_name_of_another_module_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """norm0 and norm1 become norm1 and norm2: norm1 alone may be either, so it is refused."""
    shift = Transform("group", ("norm0", "norm1"), ("norm1", "norm2"))
    monkeypatch.setattr(matching, "map_of", lambda config: NameMap("mine", (shift,)))
    checkpoint = read_checkpoint(base_of(tmp_path / "base", ["norm0.weight", "norm1.weight"], {}))
    both = with_stored_names(jaxmix.mix(lora("norm1", "norm2")), checkpoint, NAMES)[0]
    assert tuple(both.parts[0].updates) == ("norm0", "norm1")
    with pytest.raises(
        LayoutError,
        match=full_text(
            "adapter 'style': sites that match the weights' modules in "
            "several ways:\n"
            "  norm1: norm1 and norm0\n"
            "The names in memory are those of the name map mine. Rename "
            "the adapter's sites to those of the weights, or disable the "
            "map: names=''."
        ),
    ):
        with_stored_names(jaxmix.mix(lora("norm1")), checkpoint, NAMES)
