"""Writes converters/names/transformers.json: how transformers renames the tensors of checkpoints.

Run as ``python -m tests.name_maps`` with torch and transformers. Models are created on torch's meta
device, which takes no memory, with as few layers as their configs allow.
"""

import json
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["FILE", "mapping", "renamings", "row_of", "shorten", "table"]

FILE = Path(__file__).parents[1] / "converters" / "names" / "transformers.json"
# The transforms that are data only. Others run code of their own, and so does any list with one.
_KINDS = {
    "WeightRenaming": "rename",
    "PrefixChange": "rename",
    "GroupWeightRename": "group",
    "WeightConverter": "convert",
}
# The fields that state the number of heads; Step's older configs have "heads".
_HEADS = ("num_attention_heads", "heads")
# The sizes of the parts into which tensors are split, as sums of products of the config's fields.
_Q, _KV = [["num_attention_heads", "head_dim"]], [["num_key_value_heads", "head_dim"]]
_LINEAR_K = ["linear_num_key_heads", "linear_key_head_dim"]
_LINEAR_V = ["linear_num_value_heads", "linear_value_head_dim"]
_COUNT = [["linear_num_value_heads"]]
_SIZES = {
    "Molmo2TextModel": [_Q, _KV, _KV],
    "sarvam_moe": [_Q, _KV, _KV],
    "lara_mini": [[_LINEAR_K, _LINEAR_K, _LINEAR_V], [_LINEAR_V], _COUNT, _COUNT],
}
# The models inside those that can't be created from their default config without a further package
# or fields: path, class, model type, and the field of the config.
_PARTS = {
    "aya_vision": [
        ["vision_tower", "SiglipVisionModel", "siglip_vision_model", "vision_config"],
        ["language_model", "Cohere2Model", "cohere2", "text_config"],
    ],
    "conditional_detr": [["backbone.model", "ResNetBackbone", "resnet", "backbone_config"]],
    "deformable_detr": [["backbone.model", "ResNetBackbone", "resnet", "backbone_config"]],
    "detr": [["backbone.model", "ResNetBackbone", "resnet", "backbone_config"]],
    "fast_vlm": [
        ["vision_tower", "TimmWrapperModel", "timm_wrapper", "vision_config"],
        ["language_model", "Qwen2Model", "qwen2", "text_config"],
    ],
    "gemma3n": [
        ["vision_tower", "TimmWrapperModel", "gemma3n_vision", "vision_config"],
        ["language_model", "Gemma3nTextModel", "gemma3n_text", "text_config"],
        ["audio_tower", "Gemma3nAudioEncoder", "gemma3n_audio", "audio_config"],
    ],
    "granite4_vision": [
        ["vision_tower", "SiglipVisionModel", "siglip_vision_model", "vision_config"],
        ["language_model", "Granite4VisionTextModel", "granite4_vision_text", "text_config"],
    ],
    "perception_lm": [
        ["vision_tower", "TimmWrapperModel", "timm_wrapper", "vision_config"],
        ["language_model", "LlamaModel", "llama", "text_config"],
    ],
    "qwen4_exp": [
        ["visual", "Qwen4ExpVisionModel", "qwen4_exp_vision", "vision_config"],
        ["language_model", "Qwen4ExpTextModel", "qwen4_exp_text", "text_config"],
    ],
}
_LAYERS = (
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "encoder_layers",
    "decoder_layers",
    "depth",
)


def renamings() -> tuple[list[Any], dict[str, int | None]]:
    """Returns transformers' lists of transforms, and which model type or class has which list."""
    from transformers import conversion_mapping

    lists: list[Any] = []
    maps: dict[str, int | None] = {}
    for key, transforms in sorted(mapping(conversion_mapping).items()):
        rows = [row_of(transform, key) for transform in transforms]
        if any(row is None for row in rows):
            maps[key] = None
            continue
        if rows not in lists:
            lists.append(rows)
        maps[key] = lists.index(rows)
    return lists, maps


def table() -> dict[str, Any]:
    """Returns the lists of transforms, which model uses which, and the models inside models."""
    import transformers

    lists, maps = renamings()
    models = dict(sorted(_models()))
    for name in maps:
        config_class = getattr(getattr(transformers, name, None), "config_class", None)
        model_type = getattr(config_class, "model_type", None)
        if model_type in models and name != models[model_type].get("class"):
            heads = models[model_type].setdefault("heads", [])
            heads += [name] if name not in heads else []
    return {"version": transformers.__version__, "lists": lists, "maps": maps, "models": models}


def mapping(module: Any) -> dict[str, Any]:
    """Returns all of transformers' lists of transforms, by model type or class.

    Args:
        module: `transformers.conversion_mapping`.
    """
    module.get_checkpoint_conversion_mapping("llama")  # fills the cache
    return module._checkpoint_conversion_mapping_cache


def row_of(transform: Any, key: str) -> Any:
    """Returns a transform as data: its kind, the patterns that it matches and their replacements.

    Args:
        transform: One of transformers'.
        key: The model type or class that has it.

    Returns:
        The row; None if the transform runs custom code.
    """
    kind = _KINDS.get(type(transform).__name__)
    if kind is None:
        return None
    row = [kind, list(transform.source_patterns), list(transform.target_patterns)]
    if kind == "convert":
        row.append([_operation(operation, key) for operation in transform.operations])
    return row


def _operation(operation: Any, key: str) -> list[Any]:
    """Returns an operation as data: its name and its settings, such as a concatenation's axis.

    What transformers computes from the model is stated by fields of its config.
    """
    name = type(operation).__name__
    settings = {
        key: value
        for key, value in vars(operation).items()
        if isinstance(value, int | str | list | tuple) and not key.startswith("_")
    }
    if name == "PermuteForRope":
        default = _default(key, operation.subconfig_key, "num_attention_heads")
        settings |= {"heads": list(_HEADS), "defaults": {"num_attention_heads": default}}
    if name == "Split" and key in _SIZES:
        names = {field for size in _SIZES[key] for product in size for field in product}
        defaults = {field: _default(key, None, field) for field in sorted(names)}
        settings |= {"sizes": _SIZES[key], "defaults": defaults}
    return [name, settings]


def _default(key: str, part: str | None, field: str) -> int | None:
    """Returns the default of a config's field, of a model type or class, or of a nested model."""
    import transformers

    if key in transformers.CONFIG_MAPPING:
        config = transformers.CONFIG_MAPPING[key]()
    elif (cls := getattr(transformers, key, None)) is not None:
        config = cls.config_class()
    else:  # A model inside others, which are not in this list.
        return None
    return getattr(getattr(config, part, config) if part else config, field, None)


def _models() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields each model type with its base class, that class's prefix, and its nested models.

    Of a model type that has no base class, a class with a head.
    """
    import torch
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    classes = {**_head_classes(), **MODEL_MAPPING_NAMES}
    for model_type, name in classes.items():
        name = name if isinstance(name, str) else name[0]
        has_base = model_type in MODEL_MAPPING_NAMES
        entry: dict[str, Any] = {"class": name} if has_base else {"heads": [name]}
        entry["parts"] = _PARTS.get(model_type)
        try:
            cls = getattr(transformers, name)
            entry["prefix"] = cls.base_model_prefix if has_base else ""
            config = transformers.CONFIG_MAPPING[model_type]()
            shorten(config)
            with warnings.catch_warnings(), torch.device("meta"):
                warnings.simplefilter("ignore")
                model = cls(config)
            entry["parts"] = _parts(model, config)
            entry["inputs_first"] = _inputs_first(model)
        except Exception:  # The class or its config needs more than defaults: parts unknown.
            pass
        yield model_type, {key: value for key, value in entry.items() if value}


def _head_classes() -> dict[str, str]:
    """Returns a class of each model type without a base model, such as encoder-decoder pairs."""
    from transformers.models.auto import modeling_auto

    tables = {
        name: table
        for name, table in vars(modeling_auto).items()
        if re.fullmatch("MODEL_.*_MAPPING_NAMES", name)
    }
    classes: dict[str, str] = {}
    for _, table in sorted(tables.items()):
        for model_type, name in table.items():
            classes.setdefault(model_type, name if isinstance(name, str) else name[0])
    return classes


def _inputs_first(model: Any) -> list[str]:
    """Returns the ends of the names of modules with experts stored as (experts, in, out)."""
    modules = {
        ".".join([name for name in path.split(".") if not name.isdigit()][-2:])
        for path, module in model.named_modules()
        if getattr(module, "is_transposed", False)
    }
    return sorted(modules)


def shorten(config: Any) -> None:
    """Sets one layer wherever a config has a number of layers and no list of their types.

    Args:
        config: The config, which is changed.
    """
    for name in _LAYERS:
        if type(getattr(config, name, None)) is int and not hasattr(config, "layer_types"):
            try:
                setattr(config, name, 1)
            except Exception:  # A property, or checked against other fields.
                continue
    for name in getattr(config, "sub_configs", None) or ():
        if getattr(config, name, None) is not None:
            shorten(getattr(config, name))


def _parts(model: Any, config: Any) -> list[list[str | None]]:
    """Yields the nested models of a model: path, class, model type, and their config's field."""
    from transformers import PreTrainedModel

    fields = {
        id(getattr(config, name)): name
        for name in getattr(config, "sub_configs", None) or ()
        if getattr(config, name, None) is not None
    }
    return [
        [path, type(part).__name__, part.config.model_type, fields.get(id(part.config))]
        for path, part in model.named_modules()
        if path and isinstance(part, PreTrainedModel)
    ]


def main() -> None:
    """Writes the table."""
    FILE.write_text(json.dumps(table(), indent=None, separators=(",", ":")) + "\n")
    print(f"{FILE.name}: {FILE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
