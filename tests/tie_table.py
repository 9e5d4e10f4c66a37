"""Writes converters/names/ties.json: which tensors transformers ties, and what their configs say.

Run as ``python -m tests.tie_table`` with torch and transformers. Models that hold other models are
created on torch's meta device, which takes no memory.
"""

import json
import logging
import re
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tests.name_maps import shorten

__all__ = ["FILE", "class_names", "flags", "inner_models", "table", "ties_of_classes"]

FILE = Path(__file__).parents[1] / "converters" / "names" / "ties.json"
_FLAG = "tie_word_embeddings"
# Classes that tie other parameters if a field of their config has a value.
_UNLESS: dict[str, tuple[str, Any]] = {
    "MarianModel": ("share_encoder_decoder_embeddings", False),
    "MarianMTModel": ("share_encoder_decoder_embeddings", False),
    "DebertaForMaskedLM": ("legacy", False),
    "DebertaV2ForMaskedLM": ("legacy", False),
}
# The order in which classes are tried where a config names none of them.
_FIRST = ("CausalLM", "LMHead", "ConditionalGeneration", "MaskedLM")


def table() -> dict[str, Any]:
    """Returns the ties of each class, the models inside models, and how configs state ties.

    ``lists`` and ``classes`` are those of `ties_of_classes`. ``unless``: by class, a field of its
    config, a value of that field, and the number of the list of ties that it has then. ``parts``:
    by class, the models inside it that have ties. ``untied``: model types whose tensors are not
    tied by default. ``always``: those whose tensors are tied regardless of the config. ``text``:
    those whose tensors are also tied if the config of the text model states it.
    """
    import transformers

    parts = {name: models for name in class_names() if (models := inner_models(name))}
    inner = {cls for rows in parts.values() for _, cls, _, _ in rows}
    lists, classes, unless = ties_of_classes({*class_names(), *inner})
    by_flag: dict[str, list[str]] = {"untied": [], "always": [], "text": []}
    for model_type in classes:
        for flag in flags(model_type):
            by_flag[flag].append(model_type)
    version = transformers.__version__
    ties = {"lists": lists, "classes": classes, "unless": unless, "parts": parts}
    return {"version": version, **ties, **by_flag}


def ties_of_classes(names: Iterable[str]) -> tuple[list[Any], dict[str, Any], dict[str, Any]]:
    """Returns the lists of ties, each ``{target: source}``, and the number of each class's list.

    The classes are sorted by model type, those with a language model's head first. The last result
    has the classes whose ties depend on a field of their config.

    Args:
        names: The classes; those without ties are left out.
    """
    import transformers

    lists: list[dict[str, str]] = []
    classes: dict[str, dict[str, int]] = {}
    unless: dict[str, list[Any]] = {}

    def number(ties: dict[str, str]) -> int:
        if ties not in lists:
            lists.append(ties)
        return lists.index(ties)

    for name in sorted(names):
        try:
            cls = getattr(transformers, name)
        except Exception:  # It needs another library.
            continue
        if name in _UNLESS:
            field, value = _UNLESS[name]
            ties = _ties_of(_created(cls))
            unless[name] = [field, value, number(_ties_of(_created(cls, **{field: value})))]
        else:
            ties = _ties(cls)
        if ties:
            classes.setdefault(cls.config_class.model_type, {})[name] = number(ties)
    ordered = {t: dict(sorted(classes[t].items(), key=_rank)) for t in sorted(classes)}
    return lists, ordered, unless


def _created(cls: Any, **fields: Any) -> Any:
    """Returns a model on torch's meta device."""
    import torch

    config = cls.config_class(**fields)
    shorten(config)
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        return cls(config)


def inner_models(name: str) -> list[list[str]]:
    """Returns the models with ties inside a class's model: path, class, model type, config field.

    Args:
        name: A class. Only those are created whose config holds others, or whose base has ties.
    """
    import transformers

    try:
        cls = getattr(transformers, name)
        if not (getattr(cls.config_class, "sub_configs", None) or _has_base_with_ties(cls)):
            return []
        model = _created(cls)
    except Exception:  # It needs more than defaults, or another library.
        return []
    fields = {id(model.config): "", **dict(_fields(model.config))}
    models = []
    for path, part in model.named_modules():
        if path and isinstance(part, transformers.PreTrainedModel) and _ties(type(part)):
            # Some models copy their config for a part, which is the same on disk.
            field = fields.get(id(part.config), "")
            models.append([path, type(part).__name__, part.config.model_type, field])
    return models


def _has_base_with_ties(cls: Any) -> bool:
    """Whether the base class of a class's model type has ties."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    name = MODEL_MAPPING_NAMES.get(cls.config_class.model_type)
    return (
        isinstance(name, str) and name != cls.__name__ and bool(_ties(getattr(transformers, name)))
    )


def _fields(config: Any, path: str = "") -> Iterator[tuple[int, str]]:
    """Yields the nested configs of a config, each with its dotted path."""
    for name in getattr(config, "sub_configs", None) or ():
        if (inner := getattr(config, name, None)) is not None:
            yield id(inner), f"{path}{name}"
            yield from _fields(inner, f"{path}{name}.")


def class_names() -> list[str]:
    """Returns the names of all classes that the auto classes know."""
    from transformers.models.auto import modeling_auto

    names: set[str] = set()
    for key, mapping in vars(modeling_auto).items():
        if key.endswith("_MAPPING_NAMES"):
            for value in mapping.values():
                names |= {value} if isinstance(value, str) else {*value}
    return sorted(names)


def _ties(cls: Any) -> dict[str, str]:
    """Returns the ties between parameters of a class, ``{target: source}``."""
    try:
        return {} if getattr(cls, "config_class", None) is None else _ties_of(cls)
    except ImportError:  # It stands for a class that needs another library.
        return {}


def _ties_of(model: Any) -> dict[str, str]:
    """Returns the ties between parameters of a class or a model."""
    keys = getattr(model, "_tied_weights_keys", None)
    if not isinstance(keys, dict):
        return {}
    ties = {target: source.removesuffix("$") for target, source in keys.items()}
    # Patterns and whole modules are layers of detectors, which no config unties.
    return {t: s for t, s in ties.items() if _is_parameter(t) and _is_parameter(s)}


def _is_parameter(name: str) -> bool:
    return re.fullmatch(r"[\w.]+\.(weight|bias)", name) is not None


def _rank(item: tuple[str, int]) -> tuple[int, str]:
    """Sorts classes with a language model's head first."""
    name = item[0]
    return next((i for i, word in enumerate(_FIRST) if word in name), len(_FIRST)), name


def flags(model_type: str) -> list[str]:
    """Returns what is special about the flag of a model type's config, as in `table`.

    Args:
        model_type: The model type.
    """
    import transformers

    cls = transformers.CONFIG_MAPPING[model_type]

    def state(**fields: Any) -> bool:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return bool(getattr(cls(**fields), _FLAG, False))
            except Exception:  # The config needs more than its defaults, or refuses the flag.
                return False

    values = [] if state() else ["untied"]
    if state(**{_FLAG: False}):
        return ["always"]
    if "text_config" in (getattr(cls, "sub_configs", None) or {}):
        inner = {"text_config": {_FLAG: True}}
        values += (
            ["text"]
            if state(**inner, **{_FLAG: False}) or ("untied" in values and state(**inner))
            else []
        )
    return values


def main() -> None:
    """Writes the table."""
    logging.disable(logging.WARNING)
    FILE.write_text(json.dumps(table(), separators=(",", ":")) + "\n")
    print(f"{FILE.name}: {FILE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
