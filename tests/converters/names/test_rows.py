"""Rows of the table that take numbers from a config, and the table's rows for each model."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from jaxmix.converters.names.rows import transform_of
from jaxmix.converters.names.table import TABLE, name_map, name_maps
from jaxmix.placement.assembly import assembled
from jaxmix.placement.canonical import Modules, UnmappedError
from jaxmix.placement.regions import Piece, Region

ROPE = {"inverse": False, "heads": ["num_attention_heads", "heads"]}


def heads(config: dict[str, Any] | None, **settings: Any) -> int | None:
    """The number of heads that a row takes from a config."""
    default = {"defaults": {"num_attention_heads": 9}}
    row = ["convert", ["q"], ["q"], [["PermuteForRope", ROPE | default | settings]]]
    return dict(transform_of(row, config=config).operations[0][1]).get("heads")


def test_heads() -> None:
    """They come from the config that the row names, by either field, or are the default."""
    assert heads({"num_attention_heads": 4}) == 4
    assert heads({"heads": 4}) == 4
    assert heads({"heads": 4, "num_attention_heads": None}) == 4
    assert heads({"other": 4}) == 9
    assert heads({"num_attention_heads": 4, "vision_config": {"num_attention_heads": 2}}) == 4
    config = {"num_attention_heads": 4, "vision_config": {"num_attention_heads": 2}}
    assert heads(config, subconfig_key="vision_config") == 2
    assert heads({"vision_config": {}, "heads": 4}, subconfig_key="vision_config") == 9
    assert heads({"num_attention_heads": 4}, subconfig_key="vision_config") == 4
    assert heads(None) is None
    assert heads({"num_attention_heads": "four"}) is None


def rows(operation: str) -> Iterator[dict[str, Any]]:
    """The settings of an operation, wherever the table has it."""
    for transforms in json.loads(TABLE.read_text())["lists"]:
        for row in transforms:
            yield from (settings for name, settings in (row[3:] or [[]])[0] if name == operation)


def test_the_table_states_all_sizes() -> None:
    """Every split and every permutation of heads has its sizes, with defaults."""
    splits, permutations = list(rows("Split")), list(rows("PermuteForRope"))
    assert len(splits) >= 3 and len(permutations) >= 5
    for settings in splits:
        names = {name for size in settings["sizes"] for product in size for name in product}
        assert names == settings["defaults"].keys()
    assert all(settings["heads"] and settings["defaults"] for settings in permutations)


LEAF = np.arange(24 * 2, dtype=np.float32).reshape(24, 2)


def in_memory(config: dict[str, Any], leaf: str, tensor: str) -> np.ndarray:
    """A tensor in memory of a checkpoint with one leaf of 24 rows."""
    names = name_map(config)
    assert names is not None
    pieces = Modules(names, {leaf: LEAF.shape}).pieces(tensor)
    assert [holding.leaf for holding in pieces] == [leaf]
    return assembled(pieces, lambda name: LEAF)


def test_molmo_splits_by_heads() -> None:
    """4 heads of queries, 1 of keys and 1 of values, with the head size of the part's config."""
    config = {
        "model_type": "molmo2",
        "architectures": ["Molmo2ForConditionalGeneration"],
        "text_config": {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 4},
    }
    leaf = "model.transformer.blocks.0.self_attn.att_proj.weight"
    template = "model.language_model.layers.0.self_attn.{}_proj.weight"
    for name, part in {"q": slice(16), "k": slice(16, 20), "v": slice(20, 24)}.items():
        assert np.array_equal(in_memory(config, leaf, template.format(name)), LEAF[part])


def test_kimi_permutes_the_heads_of_queries_and_keys() -> None:
    """Pairs of rows become two halves of each head; values keep their order."""
    config = {
        "model_type": "kimi_k25",
        "architectures": ["Kimi_K25ForConditionalGeneration"],
        "vision_config": {"num_attention_heads": 2},
    }
    leaf = "vision_tower.encoder.blocks.0.wqkv.weight"
    template = "model.vision_tower.layers.0.attn.{}_proj.weight"
    queries = LEAF[:8].reshape(2, 2, 2, 2).swapaxes(1, 2).reshape(8, 2)
    assert np.array_equal(in_memory(config, leaf, template.format("q")), queries)
    assert np.array_equal(in_memory(config, leaf, template.format("v")), LEAF[16:])


@pytest.mark.parametrize(
    ("model_type", "leaf", "site", "message"),
    [
        (
            "molmo2",
            "model.transformer.blocks.0.self_attn.att_proj.weight",
            "model.language_model.layers.0.self_attn.k_proj",
            "model.transformer.blocks.0.self_attn.att_proj.weight (24, 2) can't be split into 3 "
            "parts without their sizes, which the model's config.json states: pass it as names=",
        ),
        (
            "kimi_k25",
            "vision_tower.encoder.blocks.0.wqkv.weight",
            "model.vision_tower.layers.0.attn.k_proj",
            "transformers makes model.vision_tower.layers.0.attn.k_proj.weight from "
            "vision_tower.encoder.blocks.0.wqkv.weight by Chunk and PermuteForRope (for as many "
            "heads as the model's config.json states: pass it as names=), which jaxmix can't undo "
            "for an adapter",
        ),
    ],
)
def test_without_a_config_the_numbers_are_unknown(
    model_type: str, leaf: str, site: str, message: str
) -> None:
    """A model's name alone, as in `names=`, does not state them."""
    names = name_map({"model_type": model_type})
    assert names is not None
    with pytest.raises(UnmappedError) as caught:
        Modules(names, {leaf: LEAF.shape}).targets(site)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("model_type", "module", "expected"),
    [
        ("gpt_oss", "model.layers.0.mlp.experts", True),
        ("aria", "model.language_model.layers.0.mlp.experts", True),
        ("gpt_oss", "model.layers.0.mlp", False),
        ("llama4", "model.language_model.layers.0.feed_forward.experts", False),
        ("mixtral", "model.layers.0.mlp.experts", False),
    ],
)
def test_experts_stored_as_in_out(model_type: str, module: str, expected: bool) -> None:
    """These are the classes whose `is_transposed` is true."""
    names = name_map({"model_type": model_type})
    assert names is not None and names.has_inputs_first(module) == expected


def test_experts_of_a_submodel() -> None:
    """A submodel that the config names has its own."""
    config = {"model_type": "llava", "text_config": {"model_type": "gpt_oss"}}
    names = name_map(config)
    assert names is not None
    assert names.has_inputs_first("model.language_model.layers.0.mlp.experts")


def pieces_of(config: dict[str, Any], leaf: str) -> tuple[Piece, ...]:
    """What a tensor on disk is in memory."""
    names = name_map(config)
    assert names is not None
    return tuple(
        holding.piece
        for holdings in Modules(names, {leaf: (8, 2)})._tensors.values()  # pyright: ignore
        for holding in holdings
    )


def test_models_inside_encoder_decoders() -> None:
    """Each has the names of its own type, the decoder below its head."""
    config: dict[str, Any] = {
        "model_type": "vision-encoder-decoder",
        "architectures": ["VisionEncoderDecoderModel"],
        "encoder": {"model_type": "vit"},
        "decoder": {"model_type": "gpt2"},
    }
    leaf = "encoder.encoder.layer.0.attention.attention.query.weight"
    (piece,) = pieces_of(config, leaf)
    assert piece == Piece("encoder.layers.0.attention.q_proj.weight")
    swiglu = {"model_type": "dinov2", "use_swiglu_ffn": True}
    leaf = "encoder.encoder.layer.0.mlp.weights_in.weight"
    pieces = pieces_of({**config, "encoder": swiglu}, leaf)
    assert [piece.disk for piece in pieces] == [Region(-1, 0, 2), Region(-1, 1, 2)]
    assert pieces[0].name.startswith("encoder.") and pieces[0].name.endswith("gate_proj.weight")


def test_classes_with_renamings_of_their_own_are_candidates() -> None:
    """A model with a head may rename more than its base model."""
    segformer = [each for each in name_maps() if each.name == "segformer"]
    assert len({each.transforms for each in segformer}) > 1
