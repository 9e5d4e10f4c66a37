"""The table of transformers' renamings: its contents, and that transformers agrees."""

import json
from typing import Any

import pytest

from jaxmix.converters.names.table import TABLE, base_prefix, transforms_for

from ... import name_maps


def test_size() -> None:
    """The table stays well below 200 kB."""
    assert TABLE.samefile(name_maps.FILE)
    assert TABLE.stat().st_size < 180_000


def test_base_prefix() -> None:
    """The prefix is the model type's; an unknown type has none."""
    assert base_prefix({"model_type": "llama"}) == "model"
    assert base_prefix({"model_type": "bert"}) == "bert"
    assert base_prefix({"model_type": "nothing-like-it"}) == ""
    assert base_prefix({"model_type": 7}) == ""


def test_unknown_models_have_the_general_renamings() -> None:
    """`LayerNorm.gamma` is renamed in every model."""
    transforms = transforms_for({"model_type": "nothing-like-it"})
    assert transforms is not None and transforms == transforms_for({})
    assert transforms[0].match("h.LayerNorm.gamma") == (0, "h.LayerNorm.weight")


def test_renamings_that_are_code() -> None:
    """A list with a transform that runs code is not in the table."""
    assert transforms_for({"model_type": "dory"}) is None


def test_parts_by_config() -> None:
    """The models inside a model are those that its config names."""
    config: dict[str, Any] = {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "vision_config": {"model_type": "vit"},
    }
    transforms = transforms_for(config)
    assert transforms is not None
    vit = [t for t in transforms if t.scope == "vision_tower"]
    assert any(t.sources == ("attention.query",) for t in vit)
    assert not any(
        t.sources == ("attention.query",)
        for t in transforms_for({**config, "vision_config": {}}) or ()
    )


# Each with its model type and the mapping of transformers that it stands in.
LIVE = (
    ("llava", "LlavaForConditionalGeneration"),
    ("gemma3", "Gemma3ForConditionalGeneration"),
    ("qwen2_vl", "Qwen2VLForConditionalGeneration"),
    ("vit", "ViTForImageClassification"),
    ("dinov2", "Dinov2ForImageClassification"),
    ("mixtral", "MixtralForCausalLM"),
    ("bert", "BertForMaskedLM"),
    ("clip", "CLIPModel"),
)


@pytest.mark.parametrize(("model_type", "name"), LIVE, ids=[name for _, name in LIVE])
def test_transformers_does_the_same(model_type: str, name: str) -> None:
    """For these classes the table gives transformers' own list, in its order."""
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    mapping = pytest.importorskip("transformers.conversion_mapping")
    config = transformers.CONFIG_MAPPING[model_type]()
    name_maps.shorten(config)
    with torch.device("meta"):
        model = getattr(transformers, name)(config)
    truth = [
        (tuple(t.source_patterns), tuple(t.target_patterns), t.scope_prefix)
        for t in mapping.get_model_conversion_mapping(model)
    ]
    transforms = transforms_for({**config.to_dict(), "architectures": [name]})
    assert transforms is not None
    assert [(t.sources, t.targets, t.scope) for t in transforms] == truth


def test_the_table_is_written_by_the_script() -> None:
    """Lists and maps are those of the transformers that is installed, if it is the table's."""
    transformers = pytest.importorskip("transformers")
    saved = json.loads(TABLE.read_text(encoding="utf-8"))
    if saved["version"] != transformers.__version__:
        pytest.skip(f"the table is of transformers {saved['version']}")
    lists, maps = name_maps.renamings()
    assert (lists, maps) == (saved["lists"], saved["maps"])
