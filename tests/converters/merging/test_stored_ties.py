"""Ties by the names that tensors have in files."""

import json
from pathlib import Path
from typing import Any

import pytest

from jaxmix.converters.checkpoints.huggingface import Checkpoint, Shard, Stored
from jaxmix.converters.merging.stored_ties import StoredTie, StoredTies, find_ties
from jaxmix.converters.names.ties import Tie

BERT = {"model_type": "bert", "architectures": ["BertForMaskedLM"]}
BLOOM = {"model_type": "bloom", "architectures": ["BloomModel"]}


def checkpoint(folder: Path, config: dict[str, Any], *names: str) -> Checkpoint:
    """A checkpoint with these tensors; no file has their bytes."""
    shapes = {name: (7,) if name.endswith("bias") else (7, 3) for name in names}
    tensors = (Stored(name, "F32", shape, folder, 0, 0) for name, shape in shapes.items())
    return Checkpoint(
        folder, (Shard("x", b"", tuple(tensors)),), texts={"config.json": json.dumps(config)}
    )


def pairs(found: StoredTies | None) -> set[frozenset[str]]:
    """Returns the names on disk of each tie."""
    assert found is not None
    return {frozenset((tie.target, tie.source)) for tie in found.ties}


def test_partners_that_are_not_stored_get_a_name(tmp_path: Path) -> None:
    """BERT's head has a weight and a bias; its site is found under the name in memory."""
    embedding = "bert.embeddings.word_embeddings.weight"
    base = checkpoint(tmp_path, BERT, embedding, "cls.predictions.bias")
    found = find_ties(base, ["cls.predictions.decoder"])
    assert pairs(found) == {
        frozenset((embedding, "cls.predictions.decoder.weight")),
        frozenset(("cls.predictions.bias", "cls.predictions.decoder.bias")),
    }
    assert found is not None and found.new_class is None
    assert found.sites["cls.predictions.decoder"] == "cls.predictions.decoder"


@pytest.mark.parametrize(
    ("site", "new_class"),
    [
        ("lm_head", "BloomForCausalLM"),
        ("transformer.word_embeddings", "BloomForCausalLM"),  # has the base model's prefix
        ("word_embeddings", None),
        ("h.0.mlp", None),
    ],
)
def test_adapter_shows_that_a_bare_base_had_a_head(
    site: str, new_class: str | None, tmp_path: Path
) -> None:
    """A base that was saved without its head has no ties of its own."""
    found = find_ties(checkpoint(tmp_path, BLOOM, "word_embeddings.weight"), [site])
    assert found is not None and found.new_class == new_class
    expected = {frozenset(("word_embeddings.weight", "lm_head.weight"))} if new_class else set()
    assert pairs(found) == expected


def test_new_names_are_in_the_style_of_the_files(tmp_path: Path) -> None:
    """Files without the base model's prefix get none; `lm_head` is outside of it."""
    config = {"model_type": "bart", "architectures": ["BartModel"]}
    found = find_ties(checkpoint(tmp_path, config, "shared.weight"), ["model.shared"])
    assert found is not None and found.new_class == "BartForConditionalGeneration"
    others = ("encoder.embed_tokens", "decoder.embed_tokens", "lm_head")
    assert pairs(found) == {frozenset(("shared.weight", f"{name}.weight")) for name in others}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, None),
        ({"model_type": "own", "architectures": ["OwnForCausalLM"]}, None),
        ({**BERT, "auto_map": {"AutoModel": "modeling.Own"}}, None),  # custom code may tie others
        ({"model_type": "vit", "architectures": ["ViTModel"]}, StoredTies((), {})),
    ],
)
def test_only_names_show_the_ties_of_unknown_models(
    config: dict[str, Any], expected: StoredTies | None, tmp_path: Path
) -> None:
    """None; a known model without ties has an empty result."""
    base = checkpoint(tmp_path, config, "embed_tokens.weight")
    assert find_ties(base, ["embed_tokens"]) == expected


@pytest.mark.parametrize(
    ("target", "source", "expected"),
    [
        ("cls.predictions.decoder.bias", "cls.predictions.bias", True),
        ("cls.predictions.bias", "cls.predictions.decoder.bias", True),
        ("cls.predictions.decoder.weight", "bert.embeddings.weight", False),
        ("a.decoder.bias", "a.dec.bias", False),  # a name that only starts alike
    ],
)
def test_inner_bias_is_one_of_the_module_around_the_head(
    target: str, source: str, expected: bool
) -> None:
    """In either order."""
    assert StoredTie(target, source, Tie(target, source)).is_inner_bias is expected
