"""`merge_checkpoint` where the head shares the embedding's tensor."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

import jaxmix
from jaxmix.converters.merging import merge_checkpoint
from jaxmix.errors import CheckpointError, LayoutError
from jaxmix.families import LoRA, Tokens

from ...messages import UNTIE, full_text, tied_embedding, tied_to, ties
from ..bases import (
    VOCAB,
    WIDTH,
    Adapters,
    contents,
    header,
    load,
    mixed,
    save_adapter,
    save_base,
)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("side", ["embedding", "head"])
def test_untie(side: str, shards: int, adapters: Adapters, tmp_path: Path) -> None:
    """The head becomes its own tensor, and only the adapter's side changes."""
    config = {"tie_word_embeddings": True, "z": 1, "text_config": {"tie_word_embeddings": True}}
    base = save_base(tmp_path / "base", shards=shards, tied=True, config=config)
    adapter = jaxmix.load(adapters[side])
    mix = jaxmix.mix(adapter, mixed(adapters))
    merged = merge_checkpoint(base, mix, tmp_path / "out", untie=True)
    params, loaded = load(base), load(tmp_path / "out")
    embedding = params["model.embed_tokens.weight"]
    expected = jaxmix.compose(params | {"lm_head.weight": embedding}, mix)
    assert merged.untied == "lm_head.weight" and loaded.keys() == {*params, "lm_head.weight"}
    for name, array in loaded.items():
        assert array.tobytes() == np.asarray(expected[name]).tobytes(), name
    changes = loaded["lm_head.weight"].tobytes() != loaded["model.embed_tokens.weight"].tobytes()
    assert changes and merged.size == sum(
        f.stat().st_size for f in tmp_path.glob("out/*.safetensors")
    )
    new_config = json.loads((tmp_path / "out/config.json").read_text())
    assert new_config == {
        "tie_word_embeddings": False,
        "z": 1,
        "text_config": {"tie_word_embeddings": False},
    }
    if shards > 1:
        before, after = (
            json.loads((folder / "model.safetensors.index.json").read_text())
            for folder in (base, tmp_path / "out")
        )
        where = before["weight_map"]
        where["lm_head.weight"] = where["model.embed_tokens.weight"]
        assert after["weight_map"] == where
        assert after["metadata"] == {
            "total_size": before["metadata"]["total_size"] + embedding.nbytes,
            "total_parameters": 1 + embedding.size,
        }
    for shard in merged.shards:
        text = json.loads(header(tmp_path / "out" / shard)[8:])
        assert text["__metadata__"] == {"format": "pt", "made by": "hand"}
        assert len(header(tmp_path / "out" / shard)) % 8 == 0


def test_tied_head_is_an_error(adapters: Adapters, tmp_path: Path) -> None:
    """The error names the tied tensors and the option; without a model type, by their names."""
    base = save_base(tmp_path / "base", tied=True, config={})
    with pytest.raises(LayoutError) as caught:
        merge_checkpoint(base, jaxmix.load(adapters["embedding"]), tmp_path / "out")
    assert str(caught.value) == ties(tied_embedding(advice=False), tree=f"{tmp_path}/base") + UNTIE
    with pytest.raises(
        LayoutError,
        match=full_text(ties(tied_to("lm_head", advice=False), tree=f"{tmp_path}/base") + UNTIE),
    ):
        merge_checkpoint(base, jaxmix.load(adapters["head"]), tmp_path / "out")
    known = save_base(tmp_path / "known", tied=True)
    with pytest.raises(LayoutError) as caught:
        merge_checkpoint(known, jaxmix.load(adapters["embedding"]), tmp_path / "out")
    assert str(caught.value) == (
        f"{known} ties the tensors of these sites to others:\n"
        "  lm_head.weight is tied to model.embed_tokens.weight; adapters change "
        "model.embed_tokens, not the other\n"
        "Use untie=True to untie them in the output: each is then written as a separate tensor, "
        "and tie_word_embeddings set to false in config.json."
    )
    assert not (tmp_path / "out").exists()


def test_file_with_both_tensors(adapters: Adapters, tmp_path: Path) -> None:
    """It is tied only if its config says so; untying then changes the config."""
    tied = save_base(tmp_path / "tied", config={"tie_word_embeddings": True})
    adapter = jaxmix.load(adapters["embedding"])
    with pytest.raises(
        LayoutError,
        match=full_text(ties(tied_embedding(advice=False), tree=f"{tmp_path}/tied") + UNTIE),
    ):
        merge_checkpoint(tied, adapter, tmp_path / "out")
    merged = merge_checkpoint(tied, adapter, tmp_path / "out", untie=True)
    assert merged.untied == "lm_head.weight" and merged.changed == ("model.embed_tokens.weight",)
    assert header(tmp_path / "out/model.safetensors") == header(tied / "model.safetensors")
    assert json.loads((tmp_path / "out/config.json").read_text()) == {"tie_word_embeddings": False}
    untold = save_base(tmp_path / "untold", config={})
    assert merge_checkpoint(untold, adapter, tmp_path / "out2").untied is None


def test_untie_without_a_tie(base: Path, adapters: Adapters, tmp_path: Path) -> None:
    """It has no effect, and it is not needed if no adapter touches the embedding."""
    embedding, mix = jaxmix.load(adapters["embedding"]), mixed(adapters)
    assert merge_checkpoint(base, embedding, tmp_path / "1", untie=True).untied is None
    tied = save_base(tmp_path / "tied", tied=True)
    assert merge_checkpoint(tied, mix, tmp_path / "2", untie=True).untied is None
    assert contents(tmp_path / "2")["config.json"] == contents(tied)["config.json"]
    (tied / "config.json").unlink()
    with pytest.raises(
        CheckpointError,
        match=full_text(
            f"{tmp_path}/tied has no config.json; found README.md, "
            "generation_config.json, model.safetensors, templates, "
            "tokenizer.json, tokenizer.model.\n"
            "Pass a folder that transformers' save_pretrained wrote."
        ),
    ):
        merge_checkpoint(tied, embedding, tmp_path / "3", untie=True)
    no_head = save_base(tmp_path / "none", tied=True, config={"tie_word_embeddings": False})
    merged = merge_checkpoint(no_head, embedding, tmp_path / "3")
    assert merged.changed == ("model.embed_tokens.weight",)


@pytest.mark.parametrize(
    ("site", "others"),
    [
        ("bert.embeddings.word_embeddings", ["cls.predictions.bias"]),
        ("proj_out", ["model.decoder.embed_tokens.weight", "model.encoder.conv1.weight"]),
        ("shared", ["decoder.block.0.layer.0.SelfAttention.q.weight"]),
    ],
)
def test_heads_that_cannot_be_untied(site: str, others: list[str], tmp_path: Path) -> None:
    """BERT's and T5's heads have more parts; another name needs the model's own code."""
    head = np.ones((7, 3), np.float32)
    (tmp_path / "base").mkdir()
    tensors: dict[str, Any] = dict.fromkeys(
        [*others, *([f"{site}.weight"] if site != "proj_out" else [])], head
    )
    save_file(tensors, tmp_path / "base" / "model.safetensors")
    adapter = jaxmix.Adapter({site: LoRA(jnp.ones((1, 3)), jnp.ones((7, 1)), 1.0)})
    found = "model.decoder.embed_tokens" if site == "proj_out" else site
    message = full_text(
        "untie=True supports decoders with a plain lm_head.weight, which "
        f"{tmp_path}/base is not: found {found}.weight for {site}. Untie the model with "
        "transformers instead: give the head a separate parameter, set config.tie_word_embeddings "
        "= False and save the model."
    )
    with pytest.raises(LayoutError, match=message):
        merge_checkpoint(tmp_path / "base", adapter, tmp_path / "out", untie=True)


def test_tokens_keep_the_tie(adapters: Adapters, tmp_path: Path) -> None:
    """Trained tokens change the shared tensor; with an adapter of one side they are refused."""
    base = save_base(tmp_path / "base", tied=True, config={"tie_word_embeddings": True})
    params = load(base)
    rows: Any = np.ones((1, params["model.embed_tokens.weight"].shape[1]), np.float32)
    update = Tokens(rows, np.array([1], np.int32))  # pyright: ignore[reportArgumentType]
    tokens = jaxmix.Adapter({"model.embed_tokens": update}, name="tokens")
    merged = merge_checkpoint(base, tokens, tmp_path / "out")
    assert merged.untied is None and merged.changed == ("model.embed_tokens.weight",)
    with pytest.raises(
        LayoutError,
        match=full_text(
            "one adapter trained tokens, which changes both tied "
            "tensors, and another changes only one of them:\n"
            "  model.embed_tokens\n"
            "  lm_head\n"
            "Merge the adapters one after the other."
        ),
    ):
        merge_checkpoint(base, [tokens, jaxmix.load(adapters["head"])], tmp_path / "no", untie=True)


def trained_as_one(folder: Path, kind: str, *, differs: bool = False) -> Path:
    """Writes what PEFT does with ``ensure_weight_tying``: both sides, with equal numbers."""
    rng = np.random.default_rng(3)
    config: dict[str, Any] = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}
    config["ensure_weight_tying"] = True
    embedding, head = "model.embed_tokens", "lm_head"
    weight = rng.standard_normal((VOCAB, WIDTH)).astype(np.float32)
    changed = weight + differs
    if kind == "saved":
        q = {f"model.layers.0.q_proj.lora_{x}.weight": np.ones(s, np.float32) for x, s in Q}
        config["modules_to_save"] = ["embed_tokens"]
        return save_adapter(
            folder, config, {f"{embedding}.weight": weight, f"{head}.weight": changed, **q}
        )
    a, b = rng.standard_normal((2, WIDTH)), rng.standard_normal((VOCAB, 2))
    a, b = a.astype(np.float32), b.astype(np.float32)
    factors = {f"{embedding}.lora_embedding_A": np.ascontiguousarray(b.T)}
    factors |= {f"{embedding}.lora_embedding_B": np.ascontiguousarray(a.T)}
    factors |= {f"{head}.lora_A.weight": a + differs, f"{head}.lora_B.weight": b}
    factors |= {f"{site}.base_layer.weight": weight for site in (embedding, head)}
    return save_adapter(folder, config, factors)


Q = (("A", (2, WIDTH)), ("B", (8, 2)))


DIFFERENTLY = (
    "\n  lm_head.weight is tied to model.embed_tokens.weight; adapters change lm_head and "
    "model.embed_tokens, differently"
)
BY_NAME = {
    "model.embed_tokens": tied_embedding(advice=False),
    "lm_head": tied_to("lm_head", advice=False),
}


@pytest.mark.parametrize("kind", ["saved", "lora"])
def test_equal_updates_keep_the_tie(kind: str, tmp_path: Path) -> None:
    """The tie stays, in a file with one tensor and in one with both, without any option."""
    adapter = jaxmix.load(trained_as_one(tmp_path / "adapter", kind))
    base = save_base(tmp_path / "base", tied=True)
    both = save_base(tmp_path / "both", config={"tie_word_embeddings": True})
    site = "model.embed_tokens.weight"
    (both / "model.safetensors").unlink()
    save_file({**load(base), "lm_head.weight": load(base)[site]}, both / "model.safetensors")
    merged = jaxmix.merge_checkpoint(base, adapter, tmp_path / "out", verify=True)
    assert merged.untied is None and site in merged.changed
    loaded = load(tmp_path / "out")
    assert loaded.keys() == load(base).keys()
    expected = jaxmix.compose({**load(base), "lm_head.weight": load(base)[site]}, adapter)
    np.testing.assert_array_equal(loaded[site], np.asarray(expected["lm_head.weight"]))
    assert contents(tmp_path / "out")["config.json"] == contents(base)["config.json"]
    merge_checkpoint(both, adapter, tmp_path / "out2")
    for name in (site, "lm_head.weight"):
        np.testing.assert_array_equal(load(tmp_path / "out2")[name], loaded[site])
    changed = jaxmix.load(trained_as_one(tmp_path / "other", kind, differs=True))
    for folder in (base, both):
        lines, new = DIFFERENTLY, "each"
        if folder == both:  # its config has no model type, so only the names show the tie
            lines, new = (
                "".join(f"\n  {BY_NAME[s]}" for s in changed.sites if s in BY_NAME),
                "lm_head.weight",
            )
        message = full_text(
            f"{folder} ties the tensors of these sites to others:{lines}\nUse untie=True to untie "
            f"them in the output: {new} is then written as a separate tensor, and "
            "tie_word_embeddings set to false in config.json."
        )
        with pytest.raises(LayoutError, match=message):
            merge_checkpoint(folder, changed, tmp_path / "no")
