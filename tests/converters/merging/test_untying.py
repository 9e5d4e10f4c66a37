"""`merge_checkpoint(untie=True)` by the table of ties: which tensors are written, and where."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

import jaxmix
from jaxmix.converters.merging import merge_checkpoint, verify_merge
from jaxmix.errors import LayoutError
from jaxmix.families import LoRA, Replace, Tokens

from ...messages import full_text
from ..bases import load

V, D = 7, 3
ATTENTION = {
    "bert": "bert.encoder.layer.0.attention.self.query.weight",
    "bart": "model.decoder.layers.0.fc1.weight",
    "t5": "decoder.block.0.layer.0.SelfAttention.q.weight",
}


def draw(*shape: int, seed: int = 0) -> Any:
    """Random numbers."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def save(folder: Path, config: dict[str, Any], **tensors: tuple[int, ...]) -> Path:
    """A base with these tensors."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    arrays = {name: draw(*shape, seed=i) for i, (name, shape) in enumerate(tensors.items())}
    save_file(arrays, folder / "model.safetensors")
    return folder


def saved(site: str, *, bias: bool = False) -> jaxmix.Adapter:
    """An adapter that brings a whole module."""
    return jaxmix.Adapter({site: Replace(draw(V, D, seed=9), draw(V, seed=8) if bias else None)})


def lora(*sites: str) -> jaxmix.Adapter:
    """An adapter that changes these weights equally."""
    return jaxmix.Adapter({site: LoRA(jnp.ones((1, D)), jnp.ones((V, 1)), 1.0) for site in sites})


def config_of(folder: Path) -> dict[str, Any]:
    """The config that was written."""
    return json.loads((folder / "config.json").read_text())


BERT = {"model_type": "bert", "architectures": ["BertForMaskedLM"]}
BERT_TENSORS = {
    "bert.embeddings.word_embeddings.weight": (V, D),
    "cls.predictions.bias": (V,),
    ATTENTION["bert"]: (D, D),
}
BART = {"model_type": "bart", "architectures": ["BartForConditionalGeneration"]}
BART_TENSORS = {"model.shared.weight": (V, D), ATTENTION["bart"]: (D, D)}
T5 = {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}
T5_TENSORS = {"shared.weight": (V, D), ATTENTION["t5"]: (D, D)}


def test_bert_has_a_weight_and_a_bias(tmp_path: Path) -> None:
    """One flag ties both; each gets a tensor, also if the adapter changes one of them only."""
    base = save(tmp_path / "base", BERT, **BERT_TENSORS)
    embedding, head = "bert.embeddings.word_embeddings.weight", "cls.predictions.decoder"
    adapter, out = saved(head, bias=True), tmp_path / "out"
    merged = merge_checkpoint(base, adapter, out, untie=True, verify=True)
    loaded, before = load(out), load(base)
    assert loaded.keys() == {*before, f"{head}.weight", f"{head}.bias"}
    assert loaded[f"{head}.weight"].tobytes() == draw(V, D, seed=9).tobytes()
    assert loaded[f"{head}.bias"].tobytes() == draw(V, seed=8).tobytes()
    assert all(loaded[name].tobytes() == before[name].tobytes() for name in before)
    assert merged.untied == f"{head}.weight"
    assert merged.copies == (f"{head}.weight", f"{head}.bias")
    assert config_of(out) == {**BERT, "tie_word_embeddings": False}
    assert verify_merge(base, adapter, out, untie=True).ok
    merge_checkpoint(base, lora(embedding.removesuffix(".weight")), tmp_path / "two", untie=True)
    loaded = load(tmp_path / "two")
    assert loaded[f"{head}.weight"].tobytes() == before[embedding].tobytes()
    assert loaded[f"{head}.bias"].tobytes() == before["cls.predictions.bias"].tobytes()


def test_bias_alone_needs_no_untying(tmp_path: Path) -> None:
    """The module around BERT's head only holds its bias, which changes there."""
    base = save(tmp_path / "base", BERT, **BERT_TENSORS)
    embedding, head = "bert.embeddings.word_embeddings", "cls.predictions.decoder"
    weight, bias = draw(V, D, seed=9), draw(V, seed=8)
    as_one = jaxmix.Adapter({embedding: Replace(weight, None), head: Replace(weight, bias)})
    only_bias = jaxmix.Adapter({head: Replace(None, bias)})
    for name, adapter in (("one", as_one), ("bias", only_bias)):
        merged = merge_checkpoint(base, adapter, tmp_path / name, verify=True)
        assert merged.untied is None and merged.copies == ()
        loaded = load(tmp_path / name)
        assert loaded.keys() == load(base).keys() and config_of(tmp_path / name) == BERT
        assert loaded["cls.predictions.bias"].tobytes() == bias.tobytes()
    assert load(tmp_path / "one")[f"{embedding}.weight"].tobytes() == weight.tobytes()


@pytest.mark.parametrize("prefix", ["model.", ""])
def test_all_embeddings_of_an_encoder_and_decoder_are_written(prefix: str, tmp_path: Path) -> None:
    """Without a tie transformers reads each of them; with bare names if the base has these."""
    names = {prefix + name.removeprefix("model."): shape for name, shape in BART_TENSORS.items()}
    config = BART if prefix else {**BART, "architectures": ["BartModel"]}
    base, out = save(tmp_path / "base", config, **names), tmp_path / "out"
    merged = merge_checkpoint(base, saved("lm_head"), out, untie=True, verify=True)
    embeddings = [f"{prefix}{part}.embed_tokens.weight" for part in ("encoder", "decoder")]
    assert merged.copies == ("lm_head.weight", *sorted(embeddings))
    loaded, shared = load(out), load(base)[f"{prefix}shared.weight"]
    assert all(loaded[name].tobytes() == shared.tobytes() for name in embeddings)
    assert loaded["lm_head.weight"].tobytes() == draw(V, D, seed=9).tobytes()
    assert config_of(out) == {**BART, "tie_word_embeddings": False}


def test_tensors_that_were_trained_as_one_stay_tied(tmp_path: Path) -> None:
    """If all of them change equally, the one in the file changes; if not all, they are untied."""
    base = save(tmp_path / "base", BART, **BART_TENSORS)
    sites = ["model.shared", "model.encoder.embed_tokens", "model.decoder.embed_tokens", "lm_head"]
    merged = merge_checkpoint(base, lora(*sites), tmp_path / "out")
    assert merged.changed == ("model.shared.weight",) and merged.copies == ()
    with pytest.raises(LayoutError) as caught:
        merge_checkpoint(base, lora("model.shared", "lm_head"), tmp_path / "no")
    assert str(caught.value) == (
        f"{base} ties the tensors of these sites to others:\n"
        "  model.decoder.embed_tokens.weight is tied to model.shared.weight; adapters change "
        "model.shared, not the other\n"
        "  model.encoder.embed_tokens.weight is tied to model.shared.weight; adapters change "
        "model.shared, not the other\n"
        "Use untie=True to untie them in the output: each is then written as a separate tensor, "
        "and tie_word_embeddings set to false in config.json."
    )
    mixed = jaxmix.mix(lora("model.shared", "lm_head"), lora("lm_head").renamed("more"))
    with pytest.raises(
        LayoutError,
        match=full_text(
            f"{tmp_path}/base ties the tensors of these sites to others:\n"
            "  lm_head.weight is tied to model.shared.weight; adapters "
            "change lm_head and model.shared, differently\n"
            "  model.decoder.embed_tokens.weight is tied to "
            "model.shared.weight; adapters change model.shared, not the "
            "other\n"
            "  model.encoder.embed_tokens.weight is tied to "
            "model.shared.weight; adapters change model.shared, not the "
            "other\n"
            "Use untie=True to untie them in the output: each is then "
            "written as a separate tensor, and tie_word_embeddings set "
            "to false in config.json."
        ),
    ):
        merge_checkpoint(base, mixed, tmp_path / "no")


def test_flag_of_one_tie_is_changed(tmp_path: Path) -> None:
    """Florence's head has a separate flag: its text model's embeddings stay tied."""
    config = {
        "model_type": "florence2",
        "architectures": ["Florence2ForConditionalGeneration"],
        "text_config": {"model_type": "bart", "tie_word_embeddings": True},
    }
    base = save(tmp_path / "base", config, **{"model.language_model.shared.weight": (V, D)})
    out = tmp_path / "out"
    merged = merge_checkpoint(base, saved("lm_head"), out, untie=True)
    assert merged.copies == ("lm_head.weight",) and len(load(out)) == 2
    assert config_of(out) == {**config, "tie_word_embeddings": False}
    merged = merge_checkpoint(base, lora("model.language_model.shared"), tmp_path / "2", untie=True)
    assert len(merged.copies) == 3 and len(load(tmp_path / "2")) == 4
    assert config_of(tmp_path / "2")["text_config"]["tie_word_embeddings"] is False
    parts = [f"model.language_model.{part}.embed_tokens" for part in ("encoder", "decoder")]
    adapter = lora("model.language_model.shared", *parts)
    merged = merge_checkpoint(base, adapter, tmp_path / "3", untie=True)
    assert merged.copies == ("lm_head.weight",) and len(load(tmp_path / "3")) == 2
    assert config_of(tmp_path / "3") == config_of(out)


def test_names_on_disk(tmp_path: Path) -> None:
    """The head has a name that transformers loads as the model's, in the style of the files."""
    config: dict[str, Any] = {
        "model_type": "gemma3",
        "architectures": ["Gemma3ForConditionalGeneration"],
        "text_config": {"model_type": "gemma3_text"},
    }
    tensors = {"language_model.model.embed_tokens.weight": (V, D)}
    base = save(tmp_path / "base", config, **tensors)
    merged = merge_checkpoint(base, saved("lm_head"), tmp_path / "out", untie=True)
    assert merged.copies == ("language_model.lm_head.weight",)
    written = config_of(tmp_path / "out")
    assert written["text_config"]["tie_word_embeddings"] is False is written["tie_word_embeddings"]
    bloom = {"model_type": "bloom", "architectures": ["BloomModel"]}
    bare = save(tmp_path / "bare", bloom, **{"word_embeddings.weight": (V, D)})
    merged = merge_checkpoint(bare, saved("lm_head"), tmp_path / "two", untie=True)
    assert merged.copies == ("lm_head.weight",)
    assert config_of(tmp_path / "two")["architectures"] == ["BloomForCausalLM"]
    # With the base model's prefix the adapter is one of the model with the head.
    adapter = lora("transformer.word_embeddings")
    assert (
        merge_checkpoint(bare, adapter, tmp_path / "three", untie=True).untied == "lm_head.weight"
    )
    # Without it, of the base model, which has no head.
    merged = merge_checkpoint(bare, lora("word_embeddings"), tmp_path / "four")
    assert merged.untied is None and config_of(tmp_path / "four") == bloom


def test_head_with_other_parts_is_no_copy_of_an_embedding(tmp_path: Path) -> None:
    """A bare BERT lacks the layers before its head: an adapter with the head does not fit it."""
    tensors = {"embeddings.word_embeddings.weight": (V, D)}
    base = save(tmp_path / "base", {**BERT, "architectures": ["BertModel"]}, **tensors)
    message = full_text(
        "1 site of the adapters can't be placed in the params by the layout 'names':\n"
        "  cls.predictions.decoder: no leaf for its weight; the nearest are "
        "embeddings.word_embeddings.weight\n"
        "Was the adapter trained on another model? If the leaves have other names, pass "
        "layout=jaxmix.Layout(…) with rules.\n"
        "Names were also compared by the name map of bert:\n"
        "  cls.predictions.decoder: bert.cls.predictions.decoder\n"
        "For another model, pass its type: names='…'."
    )
    with pytest.raises(LayoutError, match=message):
        merge_checkpoint(base, saved("cls.predictions.decoder"), tmp_path / "no", untie=True)


def test_outputs_stay_scaled(tmp_path: Path) -> None:
    """T5 scales its outputs by the flag, unless another field says so."""
    base = save(tmp_path / "base", T5, **T5_TENSORS)
    merge_checkpoint(base, saved("lm_head"), tmp_path / "out", untie=True)
    flags = {"tie_word_embeddings": False, "scale_decoder_outputs": True}
    assert config_of(tmp_path / "out") == {**T5, **flags}
    switch = {"model_type": "switch_transformers"}
    switch["architectures"] = ["SwitchTransformersForConditionalGeneration"]  # pyright: ignore
    base = save(tmp_path / "switch", switch, **T5_TENSORS)
    merged = merge_checkpoint(base, saved("lm_head"), tmp_path / "two", untie=True)
    assert len(merged.copies) == 3 and config_of(tmp_path / "two") == switch


def test_files_with_both_tensors(tmp_path: Path) -> None:
    """They are tied only if they are equal, as transformers loads them."""
    config = {"model_type": "gemma", "architectures": ["GemmaForCausalLM"]}
    names = {"model.embed_tokens.weight": (V, D), "lm_head.weight": (V, D)}
    base = save(tmp_path / "base", config, **names)
    merged = merge_checkpoint(base, saved("lm_head"), tmp_path / "out")
    assert merged.copies == () and config_of(tmp_path / "out") == config
    equal = dict.fromkeys(names, draw(V, D))
    save_file(equal, base / "model.safetensors")
    message = full_text(
        f"{base} ties the tensors of these sites to others:\n  lm_head.weight is tied to "
        "model.embed_tokens.weight; adapters change lm_head, not the other\nUse untie=True to "
        "untie them in the output: each is then written as a separate tensor, and "
        "tie_word_embeddings set to false in config.json."
    )
    with pytest.raises(LayoutError, match=message):
        merge_checkpoint(base, saved("lm_head"), tmp_path / "no")
    merged = merge_checkpoint(base, saved("lm_head"), tmp_path / "two", untie=True)
    assert merged.untied == "lm_head.weight"
    assert config_of(tmp_path / "two")["tie_word_embeddings"] is False
    merged = merge_checkpoint(base, lora("model.embed_tokens", "lm_head"), tmp_path / "three")
    assert merged.copies == () and len(merged.changed) == 2


def test_untied_models_need_no_untying(tmp_path: Path) -> None:
    """A config without ties, and a class without a head, need no untying."""
    base = save(tmp_path / "base", {**BART, "tie_word_embeddings": False}, **BART_TENSORS)
    merged = merge_checkpoint(base, lora("model.shared"), tmp_path / "out")
    assert merged.copies == () and merged.changed == ("model.shared.weight",)
    config = {"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]}
    base = save(tmp_path / "llama", config, **{"model.embed_tokens.weight": (V, D)})
    assert merge_checkpoint(base, lora("model.embed_tokens"), tmp_path / "two").copies == ()
    vit = {"model_type": "vit", "architectures": ["ViTModel"]}
    base = save(tmp_path / "vit", vit, **{"embeddings.word_embeddings.weight": (V, D)})
    merged = merge_checkpoint(base, lora("embeddings.word_embeddings"), tmp_path / "three")
    assert merged.copies == ()


def test_tokens_keep_the_tie(tmp_path: Path) -> None:
    """Trained tokens change the one tensor; next to an adapter of one side they are refused."""
    base = save(tmp_path / "base", BART, **BART_TENSORS)
    rows: Any = np.ones((1, D), np.float32)
    update = Tokens(rows, np.array([1], np.int32))  # pyright: ignore[reportArgumentType]
    tokens = jaxmix.Adapter({"model.shared": update}, name="tokens")
    assert merge_checkpoint(base, tokens, tmp_path / "out").copies == ()
    with pytest.raises(LayoutError) as caught:
        merge_checkpoint(base, [tokens, lora("lm_head")], tmp_path / "no", untie=True)
    assert str(caught.value) == (
        "one adapter trained tokens, which changes all tied tensors, and another changes only one "
        "of them:\n  model.shared\n  lm_head\nMerge the adapters one after the other."
    )
