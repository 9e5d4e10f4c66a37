"""Writes converters/names/transformers.json: how transformers renames the tensors of checkpoints.

Run as ``python -m tests.name_maps`` with torch and transformers. Models are created on torch's meta
device, which takes no memory, with as few layers as their configs allow.
"""

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["FILE", "renamings", "shorten", "table"]

FILE = Path(__file__).parents[1] / "converters" / "names" / "transformers.json"
# The transforms that are data only. Others run code of their own, and so does any list with one.
_KINDS = {
    "WeightRenaming": "rename",
    "PrefixChange": "rename",
    "GroupWeightRename": "group",
    "WeightConverter": "convert",
}
# Models of any two others, which their configs name.
_PAIRS = {
    "encoder-decoder": "EncoderDecoderModel",
    "speech-encoder-decoder": "SpeechEncoderDecoderModel",
    "vision-encoder-decoder": "VisionEncoderDecoderModel",
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
    for key, transforms in sorted(_mapping(conversion_mapping).items()):
        rows = [_row(transform) for transform in transforms]
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
    return {"version": transformers.__version__, "lists": lists, "maps": maps, "models": models}


def _mapping(module: Any) -> dict[str, Any]:
    """All of transformers' lists of transforms, by model type or class."""
    module.get_checkpoint_conversion_mapping("llama")  # fills the cache
    return module._checkpoint_conversion_mapping_cache


def _row(transform: Any) -> Any:
    """A transform as data: its kind, the patterns that it matches and what they become."""
    kind = _KINDS.get(type(transform).__name__)
    if kind is None:
        return None
    row = [kind, list(transform.source_patterns), list(transform.target_patterns)]
    if kind == "convert":
        row.append([_operation(operation) for operation in transform.operations])
    return row


def _operation(operation: Any) -> list[Any]:
    """An operation as data: its name and its settings, such as the axis of a concatenation."""
    settings = {
        key: value
        for key, value in vars(operation).items()
        if isinstance(value, int | str | list | tuple) and not key.startswith("_")
    }
    return [type(operation).__name__, settings]


def _models() -> Iterator[tuple[str, dict[str, Any]]]:
    """Each model type with its base class, that class's prefix, and the models inside it."""
    import torch
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    for model_type, name in MODEL_MAPPING_NAMES.items():
        name = name if isinstance(name, str) else name[0]
        found: dict[str, Any] = {"class": name}
        try:
            cls = getattr(transformers, name)
            found["prefix"] = cls.base_model_prefix
            config = transformers.CONFIG_MAPPING[model_type]()
            shorten(config)
            with warnings.catch_warnings(), torch.device("meta"):
                warnings.simplefilter("ignore")
                model = cls(config)
            found["parts"] = _parts(model, config)
        except Exception:  # The class or its config needs more than defaults: parts unknown.
            pass
        yield model_type, {key: value for key, value in found.items() if value}
    for model_type, name in _PAIRS.items():
        parts = [[part, "", "", part] for part in ("encoder", "decoder")]
        yield model_type, {"class": name, "parts": parts}


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
    """The models inside a model: path, class, model type, and the field that holds their config."""
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
