"""Which of a model's modules a config adapts, by PEFT's own rules: for files that do not say."""

import re
from collections.abc import Iterable
from typing import Any

from jaxmix.converters.peft.file import Config
from jaxmix.converters.peft.values import Check
from jaxmix.errors import CheckpointError, listing
from jaxmix.training.targets import Rules, is_named

__all__ = ["TARGETS", "targeted"]


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
    if not targets or (isinstance(targets, str) and targets.lower() == "all-linear"):
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
