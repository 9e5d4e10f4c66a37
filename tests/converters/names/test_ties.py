"""The table of tied parameters: its contents, and that transformers agrees."""

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

from jaxmix.converters.names import ties
from jaxmix.converters.names.ties import (
    TIE_TABLE,
    classes_with_ties,
    has_ties,
    ties_of,
    untied_fields,
)

BART = {"model_type": "bart", "architectures": ["BartForConditionalGeneration"]}
FLORENCE = {
    "model_type": "florence2",
    "architectures": ["Florence2ForConditionalGeneration"],
    "text_config": {"model_type": "bart", "tie_word_embeddings": False},
}


def pairs(config: dict[str, Any], name: str | None = None) -> dict[str, str]:
    """The ties that are on."""
    return {tie.target: tie.source for tie in ties_of(config, name) if tie.is_on}


def test_size() -> None:
    """The table stays well below 200 kB."""
    assert TIE_TABLE.stat().st_size < 40_000


def test_ties_of_parts_have_their_paths() -> None:
    """A model inside another has its own ties and its own flag."""
    assert pairs(BART) == {
        "lm_head.weight": "model.shared.weight",
        "model.encoder.embed_tokens.weight": "model.shared.weight",
        "model.decoder.embed_tokens.weight": "model.shared.weight",
    }
    assert pairs(FLORENCE) == {"lm_head.weight": "model.language_model.shared.weight"}
    assert {tie.fields for tie in ties_of(FLORENCE)} == {(), ("text_config",)}
    decoder = {"model_type": "bart", "architectures": ["BartForCausalLM"]}
    assert pairs(decoder) == {"lm_head.weight": "model.decoder.embed_tokens.weight"}


def test_parts_follow_the_config() -> None:
    """A config may name other models than the class's default ones."""
    config = {
        "model_type": "blip-2",
        "architectures": ["Blip2ForConditionalGeneration"],
        "text_config": {"model_type": "t5"},
    }
    assert pairs(config)["language_model.lm_head.weight"] == "language_model.shared.weight"
    pair = {
        "model_type": "vision-encoder-decoder",
        "architectures": ["VisionEncoderDecoderModel"],
        "encoder": {"model_type": "vit"},
        "decoder": {"model_type": "gpt2"},
    }
    assert pairs(pair) == {"decoder.lm_head.weight": "decoder.transformer.wte.weight"}
    assert not pairs({**pair, "decoder": {"model_type": "gpt2", "tie_word_embeddings": False}})
    assert not pairs({**pair, "decoder": {"model_type": "nothing-like-it"}})


def test_ties_that_a_field_decides() -> None:
    """Marian's encoder and decoder may have vocabularies of their own."""
    config = {"model_type": "marian", "architectures": ["MarianMTModel"]}
    assert pairs(config)["model.encoder.embed_tokens.weight"] == "model.shared.weight"
    untied = {**config, "share_encoder_decoder_embeddings": False}
    assert pairs(untied) == {"lm_head.weight": "model.decoder.embed_tokens.weight"}


@pytest.mark.parametrize(
    ("config", "is_on"),
    [
        ({"model_type": "llama"}, False),
        ({"model_type": "llama", "tie_word_embeddings": True}, True),
        ({"model_type": "bert"}, True),
        ({"model_type": "bert", "tie_word_embeddings": False}, False),
        ({"model_type": "mt5", "tie_word_embeddings": False}, True),
        ({"model_type": "llava", "text_config": {"tie_word_embeddings": True}}, True),
        ({"model_type": "llava", "text_config": {"tie_word_embeddings": False}}, False),
        ({"model_type": "gemma3", "text_config": {"tie_word_embeddings": False}}, True),
        ({"model_type": "lfm2", "tie_embedding": False}, False),
    ],
)
def test_flag(config: dict[str, Any], is_on: bool) -> None:
    """The flag has a default for each model type; some types read another, or none."""
    assert all(tie.is_on == is_on for tie in ties_of(config, classes_with_ties(config)[0]))


def test_unknown_models_have_no_ties() -> None:
    """Neither do models with custom code."""
    assert has_ties(BART) and has_ties(FLORENCE)
    assert not has_ties({**BART, "auto_map": {}}) and not has_ties({"model_type": "vit"})
    assert not has_ties({}) and not has_ties({"model_type": 3, "architectures": "x"})
    assert ties_of({"model_type": "vit", "architectures": [3]}) == ()


def test_untied_fields() -> None:
    """The flag is changed where the model reads it; fields that depend on it keep their effect."""
    assert untied_fields(BART, {()}, set()) == {"tie_word_embeddings": False}
    config = {**FLORENCE, "text_config": {"model_type": "bart"}}
    assert untied_fields(config, {()}, {("text_config",)}) == {"tie_word_embeddings": False}
    assert untied_fields(config, {("text_config",)}, {()}) == {
        "text_config": {"model_type": "bart", "tie_word_embeddings": False}
    }
    gemma = {"model_type": "gemma3", "text_config": {"tie_word_embeddings": True}}
    assert untied_fields(gemma, {()}, set()) == {
        "tie_word_embeddings": False,
        "text_config": {"tie_word_embeddings": False},
    }
    scaled = {"tie_word_embeddings": False, "scale_decoder_outputs": True}
    assert untied_fields({"model_type": "t5"}, {()}, set()) == scaled
    assert untied_fields({"model_type": "t5", **scaled}, {()}, set()) == {}
    not_scaled = {"model_type": "t5", "tie_word_embeddings": False}
    assert untied_fields(not_scaled, {()}, set()) == {"scale_decoder_outputs": False}
    assert untied_fields({"model_type": "switch_transformers"}, {()}, set()) == {}
    old = {"model_type": "lfm2", "tie_embedding": True}
    assert untied_fields(old, {()}, set()) == {"tie_embedding": False, "tie_word_embeddings": False}


def test_models_that_scale_by_the_flag() -> None:
    """The module knows every model type whose forward reads the flag."""
    if (spec := importlib.util.find_spec("transformers")) is None or spec.origin is None:
        pytest.skip("transformers is not installed")
    pattern = r"if self\.config\.(tie_word_embeddings|scale_decoder_outputs):\n +#? ?.*Rescale"
    models = {
        file.parent.name
        for file in Path(spec.origin).parent.glob("models/*/modeling_*.py")
        if re.search(pattern, file.read_text(encoding="utf-8"))
    }
    always = json.loads(TIE_TABLE.read_text())["always"]
    assert models <= {*ties._SCALED, *ties._KEPT, *always} and "switch_transformers" in models


def test_the_table_is_written_by_the_script() -> None:
    """The ties are those of the transformers that is installed, if it is the table's."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    from ... import tie_table

    assert TIE_TABLE.samefile(tie_table.FILE)
    saved = json.loads(TIE_TABLE.read_text(encoding="utf-8"))
    if saved["version"] != transformers.__version__:
        pytest.skip(f"the table is of transformers {saved['version']}")
    # A sample: all classes take half a minute, most of it to import them.
    rows = {
        name: number for classes in saved["classes"].values() for name, number in classes.items()
    }
    sample = [*sorted(rows)[::12], *saved["unless"], "BertModel"]
    lists, classes, unless = tie_table.ties_of_classes(sample)
    table = {name: lists[n] for named in classes.values() for name, n in named.items()}
    assert table == {name: saved["lists"][rows[name]] for name in sample if name in rows}
    for name, (field, value, number) in saved["unless"].items():
        assert unless[name][:2] == [field, value]
        assert lists[unless[name][2]] == saved["lists"][number]
    for name in ("BartForConditionalGeneration", "Blip2ForConditionalGeneration", "BertModel"):
        assert tie_table.inner_models(name) == saved["parts"].get(name, [])
    for model_type in ("bert", "llama", "t5", "llava", "gemma3"):
        flags = [flag for flag in ("untied", "always", "text") if model_type in saved[flag]]
        assert tie_table.flags(model_type) == flags
