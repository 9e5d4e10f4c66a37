"""Which of a model's modules a config adapts, by PEFT's own rules.

For files that do not name the modules, and to find keys that PEFT would ignore.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from jaxmix.converters.adapters.peft.file import Config
from jaxmix.converters.adapters.peft.values import Check, short
from jaxmix.converters.adapters.peft.wrapped import INNER, parameters, stripped
from jaxmix.errors import CheckpointError, listing
from jaxmix.training.targets import Rules, is_named

__all__ = ["TARGETS", "check_targets", "targeted"]


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _one_or_more(text: str, holds: Any) -> Check:
    """The kind of a field that holds one such value or a list of them."""
    return Check(
        f"{text} or a list of such",
        lambda value: holds(value) or (isinstance(value, list) and all(map(holds, value))),
        False,
    )


# The fields of a config that say where the adapter goes.
TARGETS = {
    "target_modules": _one_or_more("a text", _is_text),
    "layers_to_transform": _one_or_more("a whole number", _is_number),
    "layers_pattern": _one_or_more("a text", _is_text),
}


def targeted(config: Config, modules: Iterable[str]) -> list[str]:
    """The modules that an adapter is for.

    Args:
        config: its config, whose `TARGETS` are what they should be.
        modules: the names of all of a model's modules.

    Returns:
        Those that PEFT would adapt, in the order given.

    Raises:
        CheckpointError: if the config does not name them, or the model has none of that name.

    Example:
        >>> from pathlib import Path
        >>> config = Config(Path("adapter_config.json"), "UNILORA", {"target_modules": ["q"]})
        >>> targeted(config, ["layers", "layers.0", "layers.0.q", "layers.0.seq"])
        ['layers.0.q']

    Source: ``peft/tuners/tuners_utils.py``, `check_target_module_exists`.
    """
    modules, values = list(modules), config.values
    # What PEFT left out when it made the adapter is not among the names that it then saves.
    words = ("modules_to_save", *list(TARGETS)[1:])
    rules = Rules(values.get("target_modules"), **{word: values.get(word) for word in words})
    targets = values.get("target_modules")
    if not _are_named(targets):
        raise CheckpointError(
            f"{config.path}: target_modules is {targets!r}, for which PEFT asks the model's "
            "classes; expected names or a regular expression. PEFT writes the names when it saves "
            "an adapter: save it again, or write them into the file."
        )
    try:
        found = [module for module in modules if rules.takes(module)]
    except re.error as error:
        raise CheckpointError(
            f"{config.path}: target_modules, layers_pattern or modules_to_save is no regular "
            f"expression: {error}. Was the file edited? Take the one that save_pretrained wrote."
        ) from error
    named = targets if isinstance(targets, list) else []
    lost = [name for name in named if not any(is_named(module, [name]) for module in modules)]
    if lost or not found:
        what = f"the base has no modules for:{listing(lost)}" if lost else (
            f"the base has no modules for target_modules {targets!r}, "
            f"layers_to_transform {values.get('layers_to_transform')!r}"
        )  # fmt: skip
        raise CheckpointError(
            f"{config.path}: {what}\nGive the base on which the adapter was trained, with all of "
            "its leaves; if that has no such modules either, take them out of the config."
        )
    return found


def check_targets(config: Config, paths: Iterable[str]) -> None:
    """Checks that the config adapts the modules for which the file has factors.

    PEFT makes layers where the config says, and ignores the factors of other modules with no more
    than a warning. Where the config leaves its targets to the model, or its fields are not of
    their kinds, only what is certain is checked.

    Args:
        config: the adapter's config.
        paths: the paths of modules in the keys of factors, without wrappers of other libraries.

    Raises:
        CheckpointError: if there are factors that PEFT would ignore; their modules are listed.

    Source: ``peft/tuners/tuners_utils.py``, `check_target_module_exists`.
    """
    values = config.values
    # Both bring in the other side of a tied embedding, which no field names.
    if config.family == "TRAINABLE_TOKENS" or values.get("ensure_weight_tying"):
        return
    wrong = []
    for module in dict.fromkeys(map(stripped, paths)):
        # The parts of a wrapped attention go by its name; a parameter is found by another field.
        if INNER in module or parameters(config, module):
            continue
        try:
            problem = _problem(values, module)
        except (re.error, TypeError):  # no names; PEFT itself can't load this
            return
        if problem:
            wrong.append(f"{module}: {problem}")
    if wrong:
        raise CheckpointError(
            f"{config.path}: the file has factors of modules that this config does not adapt, so "
            f"that PEFT ignores them:{listing(wrong)}\nWas the config edited, or is it that of "
            "another adapter? Correct it, or remove these modules' keys from the file."
        )


def _problem(values: Mapping[str, Any], module: str) -> str | None:
    """Why PEFT does not adapt a module; None if it does, or if that can't be told."""
    targets: Any = values.get("target_modules")
    layers = values.get("layers_to_transform")
    said = {word: values.get(word) for word in ("exclude_modules", "modules_to_save")}
    rules = Rules(targets, **said)
    for field, own in said.items():
        if Rules(None, **{field: own}).excludes(module):
            return f"left out by {field} = {short(own)}"
    if not _are_named(targets):
        return None
    # The model may have been wrapped when the adapter was made, and the names are without that.
    spelled = (module, f"base_model.model.{module}", f"module.{module}")
    ends = [target for target in targets if target.endswith(f".{module}")]
    if not any(map(rules.takes, spelled)) and (isinstance(targets, str) or not ends):
        return f"not in target_modules = {short(targets)}"
    patterns = values.get("layers_pattern")
    layered = replace(rules, layers_to_transform=layers, layers_pattern=patterns)
    if isinstance(targets, str) or ends or any(map(layered.takes, spelled)):
        return None
    # Before 0.19 PEFT took the last number of a path, that of an expert, for the layer's.
    if len([part for part in module.split(".") if part.isdecimal()]) > 1:
        return None
    also = f" and layers_pattern = {short(patterns)}" if patterns else ""
    return f"not in layers_to_transform = {short(layers)}{also}"


def _are_named(targets: Any) -> bool:
    """Whether targets are names or an expression; PEFT asks the model's classes otherwise."""
    if isinstance(targets, str):
        return bool(targets) and targets.lower() != "all-linear"
    return bool(targets) and isinstance(targets, list) and all(map(_is_text, targets))
