"""Reads the table of transformers' models and of how transformers renames their tensors.

``python -m tests.name_maps`` generates it with transformers; reading it needs neither transformers
nor torch.
"""

import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jaxmix.converters.names.rows import transform_of
from jaxmix.placement.name_map import NameMap
from jaxmix.placement.transforms import Transform

__all__ = [
    "TABLE",
    "base_class",
    "base_prefix",
    "is_known",
    "name_map",
    "name_maps",
    "named_parts",
    "transforms_for",
]

TABLE = Path(__file__).with_name("transformers.json")
# Renamings that transformers applies to every model, such as of `LayerNorm.gamma`.
_ALWAYS = "legacy"
# Stands for any class with a head: the table lists only the base models' classes.
_HEAD = "*"


# A model's path, class, model type and config.
_Submodel = tuple[str, str, str, Mapping[str, Any]]


@cache
def _table() -> Mapping[str, Any]:
    return json.loads(TABLE.read_text(encoding="utf-8"))


def base_class(config: Mapping[str, Any]) -> str | None:
    """Returns the class of a model type without a head, such as ``"LlamaModel"``.

    A model type without such a class, such as an encoder-decoder of two models, has only one class,
    which is returned.

    Args:
        config: A checkpoint's config.json.

    Returns:
        The class; None if the model type is unknown.
    """
    model = _model(config)
    return model.get("class") or next(iter(model.get("heads", ())), None)


def base_prefix(config: Mapping[str, Any]) -> str:
    """Returns the prefix of the base model's tensors in a model with a head, such as ``"model"``.

    Args:
        config: A checkpoint's config.json.

    Returns:
        The prefix; ``""`` if the model type is unknown or has no prefix.
    """
    return _model(config).get("prefix", "")


def named_parts(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the paths of the submodels that a config describes, such as its text model.

    Args:
        config: A config with the model type.
    """
    return tuple(path for path, *_, field in _model(config).get("parts", ()) if field)


def is_known(config: Mapping[str, Any]) -> bool:
    """Returns whether a config's model type is one of transformers'.

    Args:
        config: A checkpoint's config.json.
    """
    return bool(_model(config))


def name_map(config: Mapping[str, Any]) -> NameMap | None:
    """Returns the name map of a checkpoint.

    Args:
        config: The checkpoint's config.json. Without ``architectures``, the model is assumed to
            have a head.

    Returns:
        The map; None if the model is not in the table, is renamed by code, or has custom code.

    Example:
        >>> name_map({"model_type": "mixtral"}).prefix
        'model'
    """
    # A model with custom code may share its type with one of transformers' models.
    if "auto_map" in config or not _model(config):
        return None
    if not config.get("architectures"):
        config = {**config, "architectures": [_HEAD]}
    transforms = transforms_for(config)
    if transforms is None:
        return None
    return NameMap(config["model_type"], transforms, base_prefix(config), _inputs_first(config))


def name_maps() -> Iterator[NameMap]:
    """Yields the maps of all model types, each with a head and as a base model alone."""
    for model_type, model in _table()["models"].items():
        for architecture in (_HEAD, model.get("class", _HEAD), *model.get("heads", ())):
            names = name_map({"model_type": model_type, "architectures": [architecture]})
            if names is not None:
                yield names


def _inputs_first(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The modules of a model and its submodels whose experts are (experts, in, out)."""
    models = _table()["models"]
    types = {model_type for _, _, model_type, _ in _submodels(config)}
    ends = {
        end for model_type in types for end in models.get(model_type, {}).get("inputs_first", ())
    }
    return tuple(sorted(ends))


def transforms_for(config: Mapping[str, Any]) -> tuple[Transform, ...] | None:
    """Returns how transformers renames the tensors of a checkpoint when it loads them.

    Args:
        config: The checkpoint's config.json: ``architectures``, ``model_type``, and the configs of
            its submodels.

    Returns:
        The transforms in order of application; None if one of them is not in the table.

    Example:
        >>> config = {"architectures": ["LlavaForConditionalGeneration"], "model_type": "llava"}
        >>> [t.sources for t in transforms_for(config)][:2]
        [('^language_model.lm_head',), ('^language_model',)]
    """
    table = _table()
    prefix = base_prefix(config)
    seen: dict[str, list[str]] = {}
    transforms: list[Transform] = []
    # A model's name alone does not state the sizes that some of its transforms need.
    is_known = bool(config.keys() - {"model_type", "architectures"})
    for path, cls, model_type, part in _submodels(config):
        if any(_is_inside(path, other) for other in seen.get(cls, ())):
            continue
        key = cls if cls in table["maps"] else model_type
        if key == model_type and any(_is_inside(path, other) for other in seen.get(key, ())):
            continue
        if key not in table["maps"]:
            continue
        number = table["maps"][key]
        if number is None:
            return None
        scope = path.removeprefix(prefix).removeprefix(".") if path else None
        rows = table["lists"][number]
        configs = (config, part) if is_known else ()
        transforms += [transform_of(row, scope, prefix if path else "", *configs) for row in rows]
        seen.setdefault(cls, []).append(path)
        if key == model_type:
            seen.setdefault(key, []).append(path)
    rows = table["lists"][table["maps"][_ALWAYS]]
    return (*transforms, *map(transform_of, rows))


def _model(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """A model type's row in the table; empty if it is unknown."""
    model_type = config.get("model_type")
    return _table()["models"].get(model_type, {}) if isinstance(model_type, str) else {}


def _submodels(config: Mapping[str, Any]) -> Iterator[_Submodel]:
    """A model, its base model, and their submodels."""
    model, model_type = _model(config), config.get("model_type")
    if not isinstance(model_type, str):
        return
    architectures = config.get("architectures")
    first = architectures[0] if isinstance(architectures, list) and architectures else None
    cls = first if isinstance(first, str) else model.get("class", "")
    yield "", cls, model_type, config
    base, path = model.get("class"), ""
    if base is not None and base != cls and model.get("prefix"):
        path = model["prefix"]
        yield path, base, model_type, config
    yield from _parts(config, path)


def _parts(config: Mapping[str, Any], path: str) -> Iterator[_Submodel]:
    """The submodels of a base model at a path."""
    replaced: list[str] = []
    for inner, cls, model_type, field in _model(config).get("parts", ()):
        if any(_is_inside(inner, other) for other in replaced):
            continue
        location = f"{path}.{inner}" if path else inner
        part = config.get(field) if field else config
        part = part if isinstance(part, Mapping) else {}
        stated = part.get("model_type") if field else None
        if isinstance(stated, str) and stated != model_type:
            # The config names a model other than the default, with submodels of its own.
            replaced.append(inner)
            base, prefix = _model(part).get("class", ""), _model(part).get("prefix", "")
            if cls.endswith("Backbone"):
                yield location, base.removesuffix("Model") + "Backbone", stated, part
            elif prefix and cls != _model({"model_type": model_type}).get("class", cls):
                yield location, _HEAD, stated, part
                location = f"{location}.{prefix}"
            yield location, base, stated, part
            yield from _parts(part, location)
        else:
            yield location, cls, model_type, part


def _is_inside(path: str, other: str) -> bool:
    """Whether a path is inside another one, or equal."""
    return other == "" or path == other or path.startswith(f"{other}.")
