"""Determines the modules that a config of PEFT adapts or saves."""

import re
from collections.abc import Mapping
from typing import Any

__all__ = ["is_saved", "is_targeted"]


def is_saved(config: Mapping[str, Any], site: str) -> bool:
    """Whether a module is saved completely."""
    names = config.get("modules_to_save") or []
    return any(f"{name}." in f"{site}." for name in names)


def is_targeted(config: Mapping[str, Any], site: str) -> bool:
    """Whether PEFT adapts a module, as far as the config's readable fields show."""
    targets, excluded = config.get("target_modules"), config.get("exclude_modules")
    try:
        if excluded and _is_named(excluded, site):
            return False
        if isinstance(targets, str) and targets:
            return targets.lower() == "all-linear" or bool(re.fullmatch(targets, site))
        if not targets or not (isinstance(targets, list) and all(map(_is_string, targets))):
            return True  # PEFT has a table of its own for these, or can't read them
        return _is_named(targets, site) and (site in targets or _is_layer(config, site))
    except (re.error, TypeError):
        return True


def _is_string(value: Any) -> bool:
    return isinstance(value, str)


def _is_layer(config: Mapping[str, Any], site: str) -> bool:
    """Whether a module is in one of the requested layers."""
    layers, patterns = config.get("layers_to_transform"), config.get("layers_pattern")
    if layers is None or layers == []:
        return True
    if not patterns:
        match = re.match(r".*?\.[^.]*\.(\d+)\.", site)
    else:
        patterns = [patterns] if isinstance(patterns, str) else patterns
        tries = (re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", site) for pattern in patterns)
        match = next((attempt for attempt in tries if attempt), None)
    if match is None:
        return False
    return int(match[1]) == layers if isinstance(layers, int) else int(match[1]) in layers


def _is_named(names: Any, site: str) -> bool:
    if isinstance(names, str):
        return bool(re.fullmatch(names, site))
    return any(site == name or site.endswith(f".{name}") for name in names)
