"""Transforms of tensor names, as transformers applies them when it loads a checkpoint.

A table lists them (`jaxmix.converters.names.table`). A transform replaces the first match of one of
its patterns by its target. Renamings are applied one after the other, then at most one conversion,
which merges or splits tensors under a new name.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

__all__ = ["Transform", "loaded_names"]


@dataclass(frozen=True)
class Transform:
    r"""Patterns of tensor names on disk, and what they become in memory.

    Args:
        kind: ``"rename"``; ``"group"``, whose patterns apply only once the first of them has
            matched; or ``"convert"``, which also changes the tensors.
        sources: Regular expressions, of which the longest that matches is used.
        targets: Their replacements, with ``\1`` for the first group. A renaming uses the first one.
        scope: The path of the model inside the checkpoint's model to which it applies; None for
            all names.
        prefix: The prefix of the base model, with or without which the scope may be written.
    """

    kind: str
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    scope: str | None = None
    prefix: str = ""

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        """All sources in one expression, the longest first, each as a named group."""
        branches = []
        for i, source in sorted(enumerate(self.sources), key=lambda item: -len(item[1])):
            pattern = source.replace("*.", r".*\.")
            # A pattern that ends in a letter or digit matches whole names only.
            if re.search(r"[a-zA-Z0-9]$", pattern):
                pattern += r"(?!\w)"
            branches.append(f"(?P<g{i}>{pattern})")
        return re.compile("|".join(branches))

    def match(self, name: str) -> "tuple[int, str] | None":
        """Returns the number of the source that matches and the renamed tensor; None if none does.

        Args:
            name: A tensor's name.
        """
        inner, outer = name, ""
        if self.scope is not None:
            scope = f"{self.scope}." if self.scope else ""
            base = f"{self.prefix}." if self.prefix else ""
            outer = next((p for p in (base + scope, scope) if name.startswith(p)), None)
            if outer is None:
                return None
            inner = name.removeprefix(outer)
        found = self._pattern.search(inner)
        if found is None:
            return None
        number = next(i for i in range(len(self.sources)) if found[f"g{i}"] is not None)
        target = self.targets[number if self.kind == "group" else 0]
        first = self._pattern.groupindex[f"g{number}"]
        target = re.sub(r"\\(\d)", lambda m: found[first + int(m[1])] or "", target)
        return number, outer + inner.replace(found[0], target, 1)


def loaded_names(names: Iterable[str], transforms: Sequence[Transform]) -> dict[str, str]:
    r"""Returns the names that tensors of a checkpoint get in memory.

    Args:
        names: The names on disk.
        transforms: What transformers applies to them, in order.

    Returns:
        ``{name on disk: name in memory}``. Tensors that a conversion merges or splits are absent.

    Example:
        >>> tower = Transform("rename", ("^vision_tower",), ("model.vision_tower",))
        >>> loaded_names(["vision_tower.conv.weight"], [tower])
        {'vision_tower.conv.weight': 'model.vision_tower.conv.weight'}
    """
    active: set[int] = set()
    loaded: dict[str, str] = {}
    # In sorted order, as transformers loads them: a group's first pattern sorts before the others.
    for name in sorted(names):
        inner = name
        for i, transform in enumerate(transforms):
            if transform.kind == "convert" or (found := transform.match(inner)) is None:
                continue
            if transform.kind == "group" and found[0] == 0:
                active.add(i)
            if transform.kind != "group" or i in active:
                inner = found[1]
        if not any(t.kind == "convert" and t.match(inner) for t in transforms):
            loaded[name] = inner
    return loaded


def transform_of(row: Sequence[Any], scope: str | None = None, prefix: str = "") -> Transform:
    """Returns a row of the table as a transform.

    Args:
        row: Its kind, sources and targets.
        scope: As in `Transform`.
        prefix: As there.
    """
    return Transform(row[0], tuple(row[1]), tuple(row[2]), scope, prefix)
