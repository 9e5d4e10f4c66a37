"""Transforms of tensor names, as transformers applies them when it loads a checkpoint.

A table lists them (`jaxmix.converters.names.table`). A transform replaces the first match of one of
its patterns by its target. Renamings are applied one after the other, then at most one conversion,
which stacks, joins or splits tensors under a new name.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

from jaxmix.placement.regions import Piece, Region

__all__ = ["Transform", "loaded_pieces"]


_UNKNOWN_HEADS = " (for as many heads as the model's config.json states: pass it as names=)"


@dataclass(frozen=True)
class Transform:
    r"""Patterns of tensor names on disk, and what they become in memory.

    Args:
        kind: ``"rename"``; ``"group"``, whose patterns apply only once the first of them has
            matched; or ``"convert"``, which also changes the tensors.
        sources: Regular expressions, of which the longest that matches is used. In a conversion
            ``*`` is the number of an expert.
        targets: Their replacements, with ``\1`` for the first group. A renaming uses the first one.
        scope: The path of the model inside the checkpoint's model to which it applies; None for
            all names.
        prefix: The prefix of the base model, with or without which the scope may be written.
        operations: What a conversion does, by transformers' names, each with its settings.
    """

    kind: str
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    scope: str | None = None
    prefix: str = ""
    operations: tuple[tuple[str, tuple[tuple[str, Any], ...]], ...] = ()

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return _joined(self.kind, self.sources)

    def match(self, name: str) -> "tuple[int, str] | None":
        """Returns the number of the source that matches and the renamed tensor; None if none does.

        Args:
            name: A tensor's name.
        """
        if (hit := self._search(name)) is None:
            return None
        number, match, outer, inner = hit
        target = self.targets[number if self.kind == "group" else 0]
        return number, outer + inner.replace(match[0], self._filled(target, number, match), 1)

    def pieces(self, name: str) -> tuple[Piece, ...]:
        """Returns what a conversion makes of a tensor; empty if it does not match the name.

        Args:
            name: A tensor's name.
        """
        if (hit := self._search(name)) is None:
            return ()
        number, match, outer, inner = hit
        targets = [
            outer + inner.replace(match[0], self._filled(target, number, match), 1)
            for target in self.targets
        ]
        numbers = {f"e{number}"} & match.groupdict().keys()
        expert = int(match[f"e{number}"] or -1) if numbers else -1
        names, source = [name for name, _ in self.operations], (number, len(self.sources))
        settings = [dict(options) for _, options in self.operations]
        count, axis = len(targets), settings[-1].get("dim", 0)
        match names:
            case ["Chunk"]:
                return tuple(
                    Piece(t, disk=Region(-1, i, count, axis)) for i, t in enumerate(targets)
                )
            case ["Split"]:
                sizes = settings[0].get("sizes") or (0,) * count
                return tuple(
                    Piece(t, disk=Region(-1, i, count, axis, sizes=sizes))
                    for i, t in enumerate(targets)
                )
            case ["Interleave", "Chunk"] if count == 2 and not settings[0]["inverse"]:
                return tuple(
                    Piece(t, disk=Region(-1, i, count, axis, alternates=True))
                    for i, t in enumerate(targets)
                )
            case ["Interleave"] if count == 1:
                return (Piece(targets[0], heads=-1 if settings[0]["inverse"] else 1),)
            case ["PermuteForRope"] | ["Chunk", "PermuteForRope"] if settings[-1].get("heads"):
                rope = settings[-1]
                heads = -rope["heads"] if rope["inverse"] else rope["heads"]
                permuted = rope.get("permute_layer_names") or ("",)
                return tuple(
                    Piece(
                        target,
                        disk=Region(-1, i, count, settings[0].get("dim", 0)),
                        heads=heads if any(name in target for name in permuted) else 0,
                    )
                    for i, target in enumerate(targets)
                )
            case ["MergeModulelist"] if len(targets) == 1:
                return (Piece(targets[0], memory=Region(expert)),)
            case ["MergeModulelist", "Concatenate"] if len(targets) == 1:
                return (Piece(targets[0], memory=Region(expert, *source, axis=axis - 1)),)
            case ["Concatenate"] if len(targets) == 1:
                shards = (expert, 0) if expert >= 0 else source  # 0: counted by `_counted`
                return (Piece(targets[0], memory=Region(-1, *shards, axis=axis)),)
            case ["ErnieFuseAndSplitTextVisionExperts"]:
                # The target of an expert depends on the number of experts: `_distributed`.
                return tuple(Piece(t, memory=Region(expert, *source)) for t in targets)
            case ["Transpose"] if len(targets) == 1:
                if not settings[0].get("check_dims"):
                    return (Piece(targets[0], is_transposed=True),)
                return (Piece(targets[0]),)  # the order on disk varies, and shapes show it
            case _:
                problem = " and ".join(names)
                if "PermuteForRope" in names and not settings[-1].get("heads"):
                    problem += _UNKNOWN_HEADS
                return tuple(Piece(t, problem=problem) for t in targets)

    def _search(self, name: str) -> tuple[int, re.Match[str], str, str] | None:
        """The number of the matching source, the match, and the name outside and inside."""
        inner, outer = name, ""
        if self.scope is not None:
            scope = f"{self.scope}." if self.scope else ""
            base = f"{self.prefix}." if self.prefix else ""
            outer = next((p for p in (base + scope, scope) if name.startswith(p)), None)
            if outer is None:
                return None
            inner = name.removeprefix(outer)
        match = self._pattern.search(inner)
        if match is None:
            return None
        number = next(i for i in range(len(self.sources)) if match[f"g{i}"] is not None)
        return number, match, outer, inner

    def _filled(self, target: str, number: int, match: re.Match[str]) -> str:
        """A target with the groups of its source."""
        first = self._pattern.groupindex[f"g{number}"]
        return re.sub(r"\\(\d)", lambda m: match[first + int(m[1])] or "", target)


@lru_cache(maxsize=1 << 12)
def _joined(kind: str, sources: tuple[str, ...]) -> re.Pattern[str]:
    """All sources in one expression, the longest first, each as a named group."""
    branches = []
    for i, source in sorted(enumerate(sources), key=lambda item: -len(item[1])):
        number = rf"(?P<e{i}>\d+)\." if kind == "convert" else r".*\."
        pattern = source.replace("*.", number)
        # A pattern that ends in a letter or digit matches whole names only.
        if re.search(r"[a-zA-Z0-9]$", pattern):
            pattern += r"(?!\w)"
        branches.append(f"(?P<g{i}>{pattern})")
    return re.compile("|".join(branches))


def loaded_pieces(
    names: Iterable[str],
    transforms: Sequence[Transform],
    count_experts: Callable[[str], int] | None = None,
) -> dict[str, tuple[Piece, ...]]:
    r"""Returns where the tensors of a checkpoint are in memory.

    Args:
        names: The names on disk.
        transforms: What transformers applies to them, in order.
        count_experts: Returns the number of experts in a stack in memory, 0 if unknown. By default
            the names are those of all experts.

    Returns:
        ``{name on disk: pieces in memory}``, one piece for a tensor that is only renamed.

    Example:
        >>> tower = Transform("rename", ("^vision_tower",), ("model.vision_tower",))
        >>> loaded_pieces(["vision_tower.conv.weight"], [tower])["vision_tower.conv.weight"][0].name
        'model.vision_tower.conv.weight'
    """
    active: set[int] = set()
    loaded: dict[str, tuple[Piece, ...]] = {}
    # In sorted order, as transformers loads them: a group's first pattern sorts before the others.
    for name in sorted(names):
        inner = name
        for i, transform in enumerate(transforms):
            if transform.kind == "convert" or (hit := transform.match(inner)) is None:
                continue
            if transform.kind == "group" and hit[0] == 0:
                active.add(i)
            if transform.kind != "group" or i in active:
                inner = hit[1]
        converted = (t.pieces(inner) for t in transforms if t.kind == "convert")
        loaded[name] = next(filter(None, converted), (Piece(inner),))
    return _counted(_distributed(loaded, count_experts))


def _counted(loaded: Mapping[str, tuple[Piece, ...]]) -> dict[str, tuple[Piece, ...]]:
    """Fills in the number of shards that are joined into a tensor."""
    shards = [p for pieces in loaded.values() for p in pieces if p.memory.parts == 0]
    counts = Counter(piece.name for piece in shards)

    def counted(piece: Piece) -> Piece:
        if piece.memory.parts:
            return piece
        count = counts[piece.name]
        if count <= piece.memory.part:
            return replace(piece, problem="Concatenate, with other shards that are absent")
        return replace(piece, memory=replace(piece.memory, parts=count))

    return {name: tuple(map(counted, pieces)) for name, pieces in loaded.items()}


def _distributed(
    loaded: Mapping[str, tuple[Piece, ...]], count_experts: Callable[[str], int] | None
) -> dict[str, tuple[Piece, ...]]:
    """Assigns each of ERNIE's experts to one of the two stacks that share them."""
    shared = [p for p in loaded.values() if len(p) == 2 and p[0].memory.expert >= 0]
    counts: dict[tuple[str, ...], int] = {}
    for pieces in shared:
        names = tuple(piece.name for piece in pieces)
        counts[names] = max(counts.get(names, 0), pieces[0].memory.expert + 1)

    def assigned(pieces: tuple[Piece, ...]) -> tuple[Piece, ...]:
        count = counts.get(tuple(piece.name for piece in pieces))
        if count is None:
            return pieces
        region, size = pieces[0].memory, -(-count // 2)
        if count_experts is not None:
            size = count_experts(pieces[0].name)
        if size == 0 or region.expert // size > 1:
            return ()
        in_stack = Region(region.expert % size, region.part, region.parts)
        return (Piece(pieces[region.expert // size].name, memory=in_stack),)

    return {name: assigned(pieces) for name, pieces in loaded.items()}
