"""Determines the modules that a config adapts, by PEFT's own rules.

Needed for files that do not name the modules, and to find keys that PEFT would ignore.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from jaxmix.converters.adapters.common.values import Check, short_json
from jaxmix.converters.adapters.peft.file import Config
from jaxmix.converters.adapters.peft.wrapped import INNER, parameters, stripped
from jaxmix.errors import CheckpointError, listing
from jaxmix.training.targets import Rules, is_named

__all__ = ["TARGETS", "check_targets", "targeted"]


def _is_string(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _one_or_more(description: str, holds: Any) -> Check:
    """The check of a field with one value or a list of them."""
    return Check(
        f"{description} or a list of them",
        lambda value: holds(value) or (isinstance(value, list) and all(map(holds, value))),
        False,
    )


# The fields of a config that select the adapted modules.
TARGETS = {
    "target_modules": _one_or_more("a string", _is_string),
    "layers_to_transform": _one_or_more("an integer", _is_number),
    "layers_pattern": _one_or_more("a string", _is_string),
}


def targeted(config: Config, modules: Iterable[str]) -> list[str]:
    """Returns the modules that an adapter targets.

    Args:
        config: The adapter's config, whose `TARGETS` are valid.
        modules: The names of all modules of a model.

    Returns:
        The modules that PEFT would adapt, in the given order.

    Raises:
        CheckpointError: If the config does not name them, or the model does not have them.

    Example:
        >>> from pathlib import Path
        >>> config = Config(Path("adapter_config.json"), "UNILORA", {"target_modules": ["q"]})
        >>> targeted(config, ["layers", "layers.0", "layers.0.q", "layers.0.seq"])
        ['layers.0.q']

    Source: ``peft/tuners/tuners_utils.py``, `check_target_module_exists`.
    """
    modules, values = list(modules), config.values
    # Modules that PEFT excluded are not among the names that it saves.
    fields = ("modules_to_save", *list(TARGETS)[1:])
    rules = Rules(values.get("target_modules"), **{field: values.get(field) for field in fields})
    targets = values.get("target_modules")
    if not _are_named(targets):
        raise CheckpointError(
            f"{config.path}: target_modules is {targets!r}, which depends on the model's classes; "
            "expected names or a regular expression. PEFT writes the names when it saves an "
            "adapter: save it again, or write them to the file."
        )
    try:
        selected = [module for module in modules if rules.takes(module)]
    except re.error as error:
        raise CheckpointError(
            f"{config.path}: target_modules, layers_pattern or modules_to_save is not a valid "
            f"regular expression: {error}. Was the file edited? Use the one that save_pretrained "
            "wrote."
        ) from error
    named = targets if isinstance(targets, list) else []
    missing = [name for name in named if not any(is_named(module, [name]) for module in modules)]
    if missing or not selected:
        problem = f"the base has no modules for:{listing(missing)}" if missing else (
            f"the base has no modules for target_modules {targets!r}, "
            f"layers_to_transform {values.get('layers_to_transform')!r}"
        )  # fmt: skip
        raise CheckpointError(
            f"{config.path}: {problem}\nWas the adapter trained on another model, or does the base "
            "lack some of its leaves? If it was trained on this one, remove them from the config."
        )
    return selected


def check_targets(config: Config, paths: Iterable[str]) -> None:
    """Checks that the config adapts the modules for which the file has factors.

    PEFT adapts the modules that the config selects, and ignores the factors of others with only a
    warning. If the targets depend on the model, or fields are invalid, only certain problems are
    reported.

    Args:
        config: The adapter's config.
        paths: The paths of modules in the keys of factors, without wrappers of other libraries.

    Raises:
        CheckpointError: If PEFT would ignore factors; their modules are listed.

    Source: ``peft/tuners/tuners_utils.py``, `check_target_module_exists`.
    """
    values = config.values
    # Both adapt the other side of a tied embedding, which no field names.
    if config.family == "TRAINABLE_TOKENS" or values.get("ensure_weight_tying"):
        return
    wrong = []
    for module in dict.fromkeys(map(stripped, paths)):
        # Parts of a wrapped attention have its name; parameters are selected by another field.
        if INNER in module or parameters(config, module):
            continue
        try:
            problem = _problem(values, module)
        except (re.error, TypeError):  # invalid; PEFT itself can't load this
            return
        if problem:
            wrong.append(f"{module}: {problem}")
    if wrong:
        raise CheckpointError(
            f"{config.path}: the file has factors of modules that this config does not adapt, so "
            f"PEFT ignores them:{listing(wrong)}\nWas the config edited, or does it belong to "
            "another adapter? Correct it, or remove these modules' keys from the file."
        )


def _problem(values: Mapping[str, Any], module: str) -> str | None:
    """Returns why PEFT does not adapt a module; None if it does, or this is uncertain."""
    targets: Any = values.get("target_modules")
    layers = values.get("layers_to_transform")
    excluded = {field: values.get(field) for field in ("exclude_modules", "modules_to_save")}
    rules = Rules(targets, **excluded)
    for field, names in excluded.items():
        if Rules(None, **{field: names}).excludes(module):
            return f"excluded by {field} = {short_json(names)}"
    if not _are_named(targets):
        return None
    # The names have no wrappers, but the model may have been wrapped when the adapter was created.
    spelled = (module, f"base_model.model.{module}", f"module.{module}")
    ends = [target for target in targets if target.endswith(f".{module}")]
    if not any(map(rules.takes, spelled)) and (isinstance(targets, str) or not ends):
        return f"not in target_modules = {short_json(targets)}"
    patterns = values.get("layers_pattern")
    layered = replace(rules, layers_to_transform=layers, layers_pattern=patterns)
    if isinstance(targets, str) or ends or any(map(layered.takes, spelled)):
        return None
    # Before 0.19 PEFT used the last number of a path, that of an expert, as the layer's.
    if len([part for part in module.split(".") if part.isdecimal()]) > 1:
        return None
    also = f" and layers_pattern = {short_json(patterns)}" if patterns else ""
    return f"not in layers_to_transform = {short_json(layers)}{also}"


def _are_named(targets: Any) -> bool:
    """Whether targets are names or an expression; otherwise they depend on the model's classes."""
    if isinstance(targets, str):
        return bool(targets) and targets.lower() != "all-linear"
    return bool(targets) and isinstance(targets, list) and all(map(_is_string, targets))
