"""PEFT's rules for which modules of a model an adapter targets."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from jaxmix.untrusted.patterns import find, is_match

__all__ = ["Rules", "by_pattern", "is_named"]


@dataclass(frozen=True)
class Rules:
    r"""The fields of a config that determine which modules an adapter targets.

    Args:
        target_modules: Names, each the full path of a module or the end of one; or a regular
            expression for full paths.
        exclude_modules: Names or a regular expression, likewise, of modules to leave out.
        modules_to_save: Modules that are trained in full and get no adapter, including their parts.
        layers_to_transform: The index or indices of the layers to target; None for all. It applies
            only to targets given as names.
        layers_pattern: The part of a path before the index of a layer, one or more regular
            expressions; None to use the first index after at least two other parts.

    Raises:
        re.error: Raised by `takes` if a regular expression is invalid.
        UnsupportedError: Raised by `takes` if a regular expression may take too long.

    Example:
        >>> rules = Rules(["q"], layers_to_transform=[0])
        >>> [rules.takes(name) for name in ("h.layers.0.q", "h.layers.1.q", "h.layers.0.seq")]
        [True, False, False]

    Source: ``peft/tuners/tuners_utils.py``, ``check_target_module_exists``.
    """

    target_modules: Any
    exclude_modules: Any = None
    modules_to_save: Any = None
    layers_to_transform: Any = None
    layers_pattern: Any = None

    def takes(self, module: str, alias: str | None = None) -> bool:
        """Whether PEFT targets the module of this path; ``alias`` is another name of it."""
        if self.excludes(module, alias):
            return False
        targets = self.target_modules
        if isinstance(targets, str):
            return is_match(targets, module, full=True)
        # A full path is targeted in any layer.
        is_target = is_named(module, targets) or is_named(alias or module, targets)
        return module in targets or (is_target and self._is_layer(module))

    def excludes(self, module: str, alias: str | None = None) -> bool:
        """Whether the module is left out even if it is targeted."""
        left_out = self.exclude_modules or ()
        if isinstance(left_out, str):
            if is_match(left_out, module, full=True):
                return True
        elif is_named(module, left_out) or is_named(alias or module, left_out):
            return True
        saved = self.modules_to_save or ()
        return any(is_match(rf"(^|.*\.){name}($|\..*)", module) for name in saved)

    def _is_layer(self, module: str) -> bool:
        """Whether a module is in one of the layers to transform."""
        layers, patterns = self.layers_to_transform, self.layers_pattern
        if layers is None or layers == []:
            return True
        if not patterns:
            match = re.match(r".*?\.[^.]*\.(?P<n>\d+)\.", module)
        else:
            expressions = [patterns] if isinstance(patterns, str) else patterns
            matches = (find(rf"(?:^|.*?\.){text}\.(?P<n>\d+)\.", module) for text in expressions)
            match = next((candidate for candidate in matches if candidate), None)
        if match is None:
            return False
        number = int(match["n"])
        return number == layers if isinstance(layers, int) else number in layers


def is_named(module: str, names: Collection[str]) -> bool:
    """Whether one of the names is the module's path or the end of it.

    Args:
        module: The module's path.
        names: The names.

    Returns:
        Whether a name matches.

    Example:
        >>> is_named("layers.0.q", ["q"]), is_named("layers.0.seq", ["q"])
        (True, False)
    """
    return any(module == name or module.endswith(f".{name}") for name in names)


def by_pattern(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    r"""Returns the value for a module from patterns such as ``rank_pattern``.

    Args:
        patterns: Values by regular expressions for the full path or the end of it. The first match
            applies.
        module: The module's path.
        default: The value without a match.

    Returns:
        The value.

    Example:
        >>> by_pattern({r"layers\.0\.q": 4, "q": 2}, "model.layers.0.q", 8)
        4

    Source: ``peft/utils/other.py``, ``get_pattern_key``.
    """
    for pattern, value in (patterns or {}).items():
        if is_match(rf"(.*\.)?({pattern})$", module):
            return value
    return default
