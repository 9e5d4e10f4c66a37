"""Which of a model's modules an adapter is for, by PEFT's own rules for names."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from jaxmix.untrusted.patterns import find, is_match

__all__ = ["Rules", "by_pattern", "is_named"]


@dataclass(frozen=True)
class Rules:
    r"""The words of a config that say where an adapter goes.

    Args:
        target_modules: names, each a module's whole path or its end; or a regular expression for
            whole paths.
        exclude_modules: likewise, what is left out.
        modules_to_save: what is trained whole, and its parts, and so has no adapter.
        layers_to_transform: the numbers of the layers that are meant, or the one; None for all. It
            holds for names alone.
        layers_pattern: what stands before the number of a layer in a path, a regular expression or
            several; None for the first number in it that is no list's first.

    Raises:
        re.error: by `takes`, if a regular expression is none.
        UnsupportedError: by `takes`, if a regular expression may take too long.

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
        """Whether PEFT adapts the module of this path; ``alias`` is another name of its own."""
        if self.excludes(module, alias):
            return False
        targets = self.target_modules
        if isinstance(targets, str):
            return is_match(targets, module, full=True)
        # A whole path is meant as it stands, in whatever layer.
        is_target = is_named(module, targets) or is_named(alias or module, targets)
        return module in targets or (is_target and self._is_layer(module))

    def excludes(self, module: str, alias: str | None = None) -> bool:
        """Whether the module is left out, whatever is targeted."""
        left_out = self.exclude_modules or ()
        if isinstance(left_out, str):
            if is_match(left_out, module, full=True):
                return True
        elif is_named(module, left_out) or is_named(alias or module, left_out):
            return True
        saved = self.modules_to_save or ()
        return any(is_match(rf"(^|.*\.){name}($|\..*)", module) for name in saved)

    def _is_layer(self, module: str) -> bool:
        """Whether a module is in one of the layers that are asked for."""
        layers, patterns = self.layers_to_transform, self.layers_pattern
        if layers is None or layers == []:
            return True
        if not patterns:
            found = re.match(r".*?\.[^.]*\.(?P<n>\d+)\.", module)
        else:
            several = [patterns] if isinstance(patterns, str) else patterns
            tried = (find(rf"(?:^|.*?\.){text}\.(?P<n>\d+)\.", module) for text in several)
            found = next((match for match in tried if match), None)
        if found is None:
            return False
        number = int(found["n"])
        return number == layers if isinstance(layers, int) else number in layers


def is_named(module: str, names: Collection[str]) -> bool:
    """Whether a module goes by one of these names: its path, or the end of it.

    Args:
        module: its path.
        names: the names.

    Returns:
        Whether one of them fits.

    Example:
        >>> is_named("layers.0.q", ["q"]), is_named("layers.0.seq", ["q"])
        (True, False)
    """
    return any(module == name or module.endswith(f".{name}") for name in names)


def by_pattern(patterns: Mapping[str, Any] | None, module: str, else_: Any) -> Any:
    r"""What a pattern says of a module, as ``rank_pattern`` and ``alpha_pattern`` do.

    Args:
        patterns: regular expressions for the end of the path, or all of it, and what they say. The
            first that fits holds.
        module: the module's path.
        else_: what holds where none fits.

    Returns:
        What is said.

    Example:
        >>> by_pattern({r"layers\.0\.q": 4, "q": 2}, "model.layers.0.q", 8)
        4

    Source: ``peft/utils/other.py``, ``get_pattern_key``.
    """
    for pattern, said in (patterns or {}).items():
        if is_match(rf"(.*\.)?({pattern})$", module):
            return said
    return else_
