"""Finds the tensors of a model that share one parameter, from a table of transformers' classes.

``python -m tests.tie_table`` generates the table with transformers; reading it needs neither
transformers nor torch. transformers' `_tied_weights_keys` name pairs of parameters in memory. A
pair is tied if ``tie_word_embeddings`` is true in the config of the model that has the pair.
"""

import copy
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from jaxmix.converters.names.table import base_class

__all__ = ["FLAG", "TIE_TABLE", "Tie", "classes_with_ties", "has_ties", "ties_of", "untied_fields"]

TIE_TABLE = Path(__file__).with_name("ties.json")
FLAG = "tie_word_embeddings"
# Other names of the flag, in older configs of LFM2.
_ALIASES = ("tie_embedding",)
# Model types that scale their outputs unless the flag is false; in transformers 5 another field
# decides.
_SCALED = ("t5", "umt5", "longt5", "pop2piano")
# Model types that scale their outputs if the flag is true. For these it stays true: transformers
# ties tensors of a file only if they are equal.
_KEPT = ("switch_transformers",)
# Classes with a language model's head, by their names.
_HEADS = ("CausalLM", "LMHead", "ConditionalGeneration")


@dataclass(frozen=True)
class Tie:
    """Two parameters that share one tensor in memory.

    Args:
        target: The name in memory of the parameter that is replaced.
        source: The name in memory of the parameter that replaces it.
        fields: The path in config.json to the config with the flag.
        stated: Whether the flag is set; None if the config does not state it.
        is_default: Whether the parameters are tied if the flag is not stated.
        is_forced: Whether the parameters are tied regardless of the flag.
    """

    target: str
    source: str
    fields: tuple[str, ...] = ()
    stated: bool | None = None
    is_default: bool = True
    is_forced: bool = False

    @property
    def is_on(self) -> bool:
        """Whether transformers ties the two, if at most one of them is in the file."""
        return self.is_forced or (self.is_default if self.stated is None else self.stated)


@cache
def _table() -> Mapping[str, Any]:
    return json.loads(TIE_TABLE.read_text(encoding="utf-8"))


def has_ties(config: Mapping[str, Any]) -> bool:
    """Whether the table has a model: classes of its type, or submodels of its class.

    Args:
        config: A checkpoint's config.json.
    """
    # A model with custom code may share its type with one of transformers' models.
    if "auto_map" in config:
        return False
    model_type = config.get("model_type")
    known = isinstance(model_type, str) and model_type in _table()["classes"]
    return known or any(name in _table()["parts"] for name in _architectures(config))


def classes_with_ties(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the classes of a model type that tie parameters, language models first.

    Args:
        config: A checkpoint's config.json.
    """
    return tuple(_table()["classes"].get(config.get("model_type"), ()))


def ties_of(config: Mapping[str, Any], name: str | None = None) -> tuple[Tie, ...]:
    """Returns the ties of a model in memory, by its config.

    Args:
        config: A checkpoint's config.json.
        name: The model's class; by default that of the config, or the model type's base class.

    Example:
        >>> [tie.target for tie in ties_of({"model_type": "opt"}, "OPTForCausalLM")]
        ['lm_head.weight']
    """
    name = name or next(iter(_architectures(config)), base_class(config))
    ties = list(_ties_of_class(name, config, "", ()))
    for path, cls, model_type, field in _table()["parts"].get(name, ()):
        if not field:
            ties += _ties_of_class(cls, config, path, ())
            continue
        fields = tuple(field.split("."))
        part = _config_at(config, fields)
        stated = part.get("model_type")
        if isinstance(stated, str) and stated != model_type:
            cls = _similar(cls, stated)
            ties += [
                replace(
                    tie, target=f"{path}.{tie.target}", source=f"{path}.{tie.source}", fields=fields
                )
                for tie in ties_of(part, cls)
            ]
            continue
        ties += _ties_of_class(cls, {"model_type": model_type, **part}, path, fields)
    return tuple(ties)


def untied_fields(
    config: Mapping[str, Any],
    paths: Collection[tuple[str, ...]],
    others: Collection[tuple[str, ...]],
) -> dict[str, Any]:
    """Returns the fields of config.json that untie models.

    Args:
        config: A checkpoint's config.json.
        paths: The paths to the configs whose flag is to be false.
        others: The paths to configs whose flag ties other parameters and must not change.
    """
    fields = copy.deepcopy(dict(config))
    for path in paths:
        part = fields
        for field in path:
            part = part.setdefault(field, {})
        if part.get("model_type") in _SCALED and "scale_decoder_outputs" not in part:
            # T5 scales its outputs unless the flag is false.
            part["scale_decoder_outputs"] = part.get(FLAG) is not False
        if part.get("model_type") in _KEPT:
            continue
        part |= {name: False for name in (FLAG, *(name for name in _ALIASES if name in part))}
    text = fields.get("text_config")
    if () in paths and isinstance(text, dict) and ("text_config",) not in others:
        text[FLAG] = False  # other programs, and some classes, read it there
    return {name: value for name, value in fields.items() if config.get(name, ...) != value}


def _ties_of_class(
    name: str | None, config: Mapping[str, Any], path: str, fields: tuple[str, ...]
) -> Iterator[Tie]:
    """The ties that one class states, at a path of the model."""
    table, model_type = _table(), config.get("model_type")
    number = next((c[name] for c in table["classes"].values() if name in c), None)
    if number is None:
        return
    field, value, other = table["unless"].get(name, ("", None, 0))
    if field in config and config[field] == value:
        number = other
    stated = _stated(config)
    text = config.get("text_config")
    if stated is not True and model_type in table["text"] and isinstance(text, Mapping):
        inner = _stated(text)
        stated = inner if stated is None else stated or inner is True
    start = f"{path}." if path else ""
    for target, source in table["lists"][number].items():
        yield Tie(
            f"{start}{target}",
            f"{start}{source}",
            fields,
            stated,
            model_type not in table["untied"],
            model_type in table["always"],
        )


def _stated(config: Mapping[str, Any]) -> bool | None:
    """The flag of a config; None if absent."""
    values = [config.get(name) for name in (*_ALIASES, FLAG)]
    return next((value for value in values if isinstance(value, bool)), None)


def _similar(name: str, model_type: str) -> str | None:
    """The class of another model type that corresponds to a class: with a head if that has one."""
    if not any(word in name for word in _HEADS):
        return base_class({"model_type": model_type})
    return next(iter(_table()["classes"].get(model_type, ())), None)


def _config_at(config: Mapping[str, Any], fields: Iterable[str]) -> Mapping[str, Any]:
    """The config at a path; empty if there is none."""
    for field in fields:
        inner = config.get(field)
        config = inner if isinstance(inner, Mapping) else {}
    return config


def _architectures(config: Mapping[str, Any]) -> list[str]:
    names = config.get("architectures")
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
