"""Tables of modules by their names on disk and in memory, with ``{}`` for a number."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from jaxmix.placement.regions import WHOLE, Piece, Region, swapped_halves

__all__ = ["Template", "Templates"]


@dataclass(frozen=True)
class Template:
    """A module on disk, and the module in memory, or the modules into which its rows are split.

    Args:
        source: The module's name on disk, such as ``"double_blocks.{}.img_attn.qkv"``.
        targets: Its names in memory, with the same numbers.
        ratio: The proportions of the rows of several targets; empty if they are equal, zeros for a
            square q with k and v of another size.
        has_swapped_halves: Whether the two halves of the rows are swapped in memory.
        swap_ratio: The rows per column of the weights with swapped halves, if only some have them.
        is_tensor: Whether the names are those of a tensor, not of a module.
        is_transposed: Whether the weight is transposed in memory.
    """

    source: str
    targets: tuple[str, ...]
    ratio: tuple[int, ...] = ()
    has_swapped_halves: bool = False
    swap_ratio: int = 0
    is_tensor: bool = False
    is_transposed: bool = False

    def pieces(self, numbers: Iterable[str], suffix: str) -> tuple[Piece, ...]:
        """Returns where the module's tensor is in memory.

        Args:
            numbers: The numbers to insert for ``{}``.
            suffix: The tensor's name in the module, such as ``"weight"``.
        """
        numbers, count = list(numbers), len(self.targets)
        names = [f"{target.format(*numbers)}.{suffix}" for target in self.targets]
        if self.has_swapped_halves:
            return swapped_halves(names[0])
        if count == 1:
            return (Piece(names[0], WHOLE, WHOLE, self.is_transposed, swap_ratio=self.swap_ratio),)
        is_ratio = bool(self.ratio)
        return tuple(
            Piece(name, Region(part=i, parts=count, sizes=self.ratio, is_ratio=is_ratio), WHOLE)
            for i, name in enumerate(names)
        )


@dataclass(frozen=True)
class Templates:
    """A table of templates that looks up names in both directions.

    Args:
        rows: The templates.
        prefixes: Optional prefixes of the names on disk, such as ``"model.diffusion_model."``.
        suffixes: ``{end of a tensor's name on disk: what it is read as}`` where they differ, such
            as ``{"scale": "weight", "in_proj_weight": "in_proj.weight"}``.
        components: Prefixes of a pipeline's components, which names keep, such as
            ``"transformer."``.

    Example:
        >>> table = Templates((Template("block.{}.qkv", ("h.{}.q", "h.{}.k", "h.{}.v")),))
        >>> [piece.name for piece in table.pieces("block.3.qkv.bias")]
        ['h.3.q.bias', 'h.3.k.bias', 'h.3.v.bias']
        >>> table.sources(["h.3.q", "h.3.k", "h.3.v"])
        {'block.3.qkv': ('h.3.q', 'h.3.k', 'h.3.v')}
    """

    rows: tuple[Template, ...]
    prefixes: tuple[str, ...] = ()
    suffixes: tuple[tuple[str, str], ...] = ()
    components: tuple[str, ...] = ()

    def pieces(self, tensor: str) -> tuple[Piece, ...]:
        """Returns where a tensor is in memory: under the same name if the table lacks it.

        Args:
            tensor: The tensor's name on disk.
        """
        component = next((p for p in self.components if tensor.startswith(p)), "")
        pieces = self._pieces(tensor.removeprefix(component))
        if not component:
            return pieces
        return tuple(replace(piece, name=f"{component}{piece.name}") for piece in pieces)

    def _pieces(self, tensor: str) -> tuple[Piece, ...]:
        prefix = next((p for p in self.prefixes if tensor.startswith(p)), "")
        name = tensor.removeprefix(prefix)
        for pattern, template in self._by_source.get(_skeleton(name), ()):
            if template.is_tensor and (match := pattern.fullmatch(name)):
                return (Piece(template.targets[0].format(*match.groups())),)
        module, _, suffix = self._respelled(name).rpartition(".")
        for pattern, template in self._by_source.get(_skeleton(module), ()):
            if not template.is_tensor and (match := pattern.fullmatch(module)):
                return template.pieces(match.groups(), suffix)
        return (Piece(name),)

    def _respelled(self, tensor: str) -> str:
        """A tensor's name on disk, where it is not that of a module's weight or bias."""
        start, _, end = tensor.rpartition(".")
        end = dict(self.suffixes).get(end, end)
        return f"{start}.{end}" if start else end

    def tensor_of(self, module: str) -> str:
        """Returns the weight of a module on disk: itself, if it is a tensor that no module has.

        Args:
            module: The name of a module on disk, or of such a tensor.
        """
        return module if self._respelled(module) != module else f"{module}.weight"

    def stored(self, module: str) -> Iterator[tuple[str, tuple[Piece, ...]]]:
        """Yields the names on disk of a module in memory, in the table's order.

        Args:
            module: The module's name in memory, or that of a tensor.

        Yields:
            The name of a module on disk that has the module's weight, and where all of it is in
            memory.
        """
        for pattern, template in self._by_target.get(_skeleton(module), ()):
            if match := pattern.fullmatch(module):
                source = template.source.format(*match.groups())
                if template.is_tensor:
                    yield source, (Piece(template.targets[0].format(*match.groups())),)
                else:
                    yield source, template.pieces(match.groups(), "weight")

    def has_source(self, name: str) -> bool:
        """Returns whether a row has this name on disk, of a module or a tensor.

        Args:
            name: The name, without a prefix or component.
        """
        rows = self._by_source.get(_skeleton(name), ())
        return any(pattern.fullmatch(name) for pattern, _ in rows)

    def sources(self, modules: Iterable[str]) -> dict[str, tuple[str, ...]]:
        """Returns the names on disk of modules in memory.

        Args:
            modules: The modules' names in memory.

        Returns:
            ``{name on disk: names in memory}`` of the modules on disk whose targets are all given.
        """
        known = set(modules)
        found: dict[str, tuple[str, ...]] = {}
        for module in known:
            for pattern, template in self._by_target.get(_skeleton(module), ()):
                if match := pattern.fullmatch(module):
                    targets = tuple(t.format(*match.groups()) for t in template.targets)
                    if known.issuperset(targets):
                        found[template.source.format(*match.groups())] = targets
        return found

    @cached_property
    def _by_source(self) -> Mapping[str, list[tuple[re.Pattern[str], Template]]]:
        match: dict[str, list[tuple[re.Pattern[str], Template]]] = {}
        for row in self.rows:
            match.setdefault(_skeleton(row.source), []).append((_pattern(row.source), row))
        return match

    @cached_property
    def _by_target(self) -> Mapping[str, list[tuple[re.Pattern[str], Template]]]:
        match: dict[str, list[tuple[re.Pattern[str], Template]]] = {}
        for row in self.rows:
            for target in row.targets:
                match.setdefault(_skeleton(target), []).append((_pattern(target), row))
        return match


def _skeleton(name: str) -> str:
    """A name without its numbers, by which rows are looked up."""
    return re.sub(r"(?<![^.])(\d+|\{\})(?![^.])", "#", name)


def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.escape(template).replace(r"\{\}", r"(\d+)"))
