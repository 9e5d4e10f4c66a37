"""Finds sites by their names in memory among leaves that have the names on disk.

transformers renames, stacks, joins and splits tensors when it loads a checkpoint. PEFT writes the
names in memory; checkpoints and older adapters have those on disk. A `NameMap` converts both to
the names in memory, which are then compared.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from jaxmix.placement.name_map import NameMap
from jaxmix.placement.part_places import UnmappedError, memory_shape, part_place
from jaxmix.placement.place import Part, Place
from jaxmix.placement.regions import WHOLE, Piece, Region

__all__ = ["Holding", "Modules", "Target", "UnmappedError"]


@dataclass(frozen=True)
class Holding:
    """A leaf that holds a tensor of the model in memory, or a part of one: ``leaf[piece.disk]``."""

    leaf: str
    piece: Piece


@dataclass(frozen=True)
class Target:
    """A module of the tree to which a site's updates, or a part of them, apply.

    Args:
        site: The module's name in the tree, with an index if its leaf holds several sites.
        cut: The part of the site's weight that the module holds.
        siblings: The rows of each part of the weight, if ``cut`` is one of several.
        places: Where the weight and bias are, if that does not follow from the site's name.
        experts: The number of experts if the site's weight is a stack of several modules; 0 if not.
        region: The part of the leaf that is the site's weight.
    """

    site: str
    cut: Region = WHOLE
    siblings: tuple[int, ...] = ()
    places: Mapping[Part, Place] | None = None
    experts: int = 0
    region: Region = WHOLE


class Modules:
    """Finds the modules of a tree by the names that they have in memory.

    Args:
        names: The model's name map.
        shapes: The shape of each leaf, by its name.
    """

    def __init__(self, names: NameMap, shapes: Mapping[str, tuple[int, ...]]):
        self.names, self.shapes = names, shapes

    @cached_property
    def _tensors(self) -> Mapping[str, tuple[Holding, ...]]:
        """The leaves that hold each tensor in memory."""
        found: dict[str, list[Holding]] = {}
        for leaf, pieces in self.names.loaded(self.shapes).items():
            weight = self.shapes.get(f"{_module(leaf)}.weight", self.shapes[leaf])
            for piece in (fitted for each in pieces for fitted in each.fitted(weight)):
                found.setdefault(piece.name, []).append(Holding(leaf, piece))
        return {name: tuple(holdings) for name, holdings in found.items()}

    @cached_property
    def _renamed(self) -> Mapping[str, tuple[str, ...]]:
        """``{module or tensor in memory: names on disk}`` where only the name differs."""
        found: dict[str, set[str]] = {}
        for name, holdings in self._tensors.items():
            for holding in holdings:
                if holding.piece == Piece(name):
                    is_same = name == holding.leaf
                    for memory, stored in (
                        (name, name if is_same else holding.leaf.removesuffix(".weight")),
                        (_module(name), _module(holding.leaf)),
                    ):
                        found.setdefault(memory, set()).add(stored)
        return {name: tuple(sorted(stored)) for name, stored in found.items()}

    @cached_property
    def stored(self) -> frozenset[str]:
        """The names of the tree's modules and leaves."""
        return frozenset({*self.shapes, *map(_module, self.shapes)})

    def in_memory(self, site: str) -> tuple[str, ...]:
        """Returns the modules on disk that have a name in memory and are only renamed.

        Args:
            site: A module's name in memory, as the base model or a model with a head has it.
        """
        return next(filter(None, map(self._renamed.get, self._spellings(site))), ())

    def pieces(self, tensor: str) -> tuple[Holding, ...]:
        """Returns the leaves of a tensor in memory, by expert and part."""
        return tuple(sorted(self._holdings(tensor), key=lambda h: h.piece.memory))

    def targets(self, site: str) -> tuple[Target, ...]:
        """Returns the modules to which a site's updates apply; empty if there are none.

        Args:
            site: A site that no leaf is named after: a name in memory, or an older one.

        Raises:
            UnmappedError: If the numbers differ in a way that is not supported, or parts of a
                weight are absent.
        """
        for tensor in (f"{site}.weight", site):
            if holdings := self._holdings(tensor):
                return tuple(self._targets(site, WHOLE, tensor, holdings))
        for tensor in (f"{site}.weight", site):
            pieces = tuple(self._fitted(self.names.loaded([tensor], self._count_experts)[tensor]))
            if (leaf := self._fused(pieces)) is not None:
                fused = self._fused_places(leaf, pieces)
                return (Target(leaf.removesuffix(".weight"), places=fused),)
            found = [
                target
                for piece in pieces
                if (holdings := self._inside(piece))
                for target in self._targets(site, piece.disk, piece.name, holdings, piece)
            ]
            if found:
                return tuple(found)
        return ()

    def _fitted(self, pieces: tuple[Piece, ...]) -> Iterator[Piece]:
        """The pieces of a tensor on disk, fitted to the weight that the tree has in memory."""
        for piece in pieces:
            if piece.swap_ratio and (holdings := self._holdings(piece.name)):
                yield from piece.fitted(self.shapes[holdings[0].leaf])
            else:
                yield piece

    def _fused(self, pieces: tuple[Piece, ...]) -> str | None:
        """The leaf that is split into the same pieces as a tensor with an older name."""
        if len(pieces) < 2:
            return None
        leaves = [
            {
                h.leaf
                for h in self._holdings(p.name)
                if (h.piece.disk, h.piece.memory) == (p.disk.fitted(self.shapes[h.leaf]), p.memory)
            }
            for p in pieces
        ]
        return next(iter(set.intersection(*leaves)), None)

    def _fused_places(self, leaf: str, pieces: tuple[Piece, ...]) -> Mapping[Part, Place] | None:
        """The places of a fused leaf whose name is not that of a module's weight."""
        if leaf.endswith(".weight"):
            return None
        places: dict[Part, Place] = {"weight": Place(leaf)}
        for bias in self._holdings(f"{pieces[0].name.removesuffix('.weight')}.bias"):
            places["bias"] = Place(bias.leaf)
        return places

    def tried(self, site: str) -> Iterator[str]:
        """Yields the other names under which a site is looked up, for messages."""
        yield from (name for name in self._spellings(site) if name != site)
        loaded = self.names.loaded([f"{site}.weight"])
        for piece in loaded[f"{site}.weight"]:
            if (name := piece.name.removesuffix(".weight")) != site:
                yield name

    def _spellings(self, name: str) -> Iterator[str]:
        """A name, also with the base model's prefix added or dropped."""
        yield name
        if prefix := self.names.prefix:
            yield f"{prefix}.{name}"
            if name.startswith(f"{prefix}."):
                yield name.removeprefix(f"{prefix}.")

    def _holdings(self, tensor: str) -> tuple[Holding, ...]:
        return next(filter(None, map(self._tensors.get, self._spellings(tensor))), ())

    def _count_experts(self, tensor: str) -> int:
        """The number of experts in a stack in memory; 0 if it is absent."""
        counts = [
            h.piece.memory.expert + 1 if h.piece.memory.expert >= 0 else self.shapes[h.leaf][0]
            for h in self._holdings(tensor)
        ]
        return max(counts, default=0)

    def _inside(self, piece: Piece) -> tuple[Holding, ...]:
        """The leaves that hold the part of a tensor in memory to which an older name refers."""
        holdings = self._holdings(piece.name)
        equal = tuple(h for h in holdings if h.piece.memory == piece.memory)
        return equal or tuple(
            h
            for h in holdings
            if h.piece.memory.contains(piece.memory) or piece.memory.contains(h.piece.memory)
        )

    def _targets(
        self,
        site: str,
        region: Region,
        tensor: str,
        holdings: tuple[Holding, ...],
        older: Piece | None = None,
    ) -> Iterator[Target]:
        """The targets of a site, whose part ``region`` is in a tensor in memory.

        ``older`` is where that part is in the tensor, if the site's name is an older one.
        """
        wanted = older.memory if older else WHOLE
        for holding in sorted(holdings, key=lambda h: (h.piece.memory, h.leaf)):
            piece = holding.piece
            if problem := piece.problem or (older.problem if older else ""):
                raise UnmappedError(
                    f"transformers makes {piece.name} from {holding.leaf} by {problem}, which "
                    "jaxmix can't undo for an adapter"
                )
            is_transposed = piece.is_transposed != bool(older and older.is_transposed)
            heads = piece.heads - (older.heads if older else 0)
            cut, index = region, piece.disk
            if piece.memory == wanted:
                pass
            elif wanted.contains(piece.memory) and region == WHOLE:
                cut = piece.memory
            elif piece.memory.contains(wanted) and piece.disk == WHOLE:
                index = wanted
            else:
                raise UnmappedError(f"{holding.leaf} holds an unknown part of it")
            siblings = self._siblings(holdings, piece, cut) if cut != region else ()
            if cut == region and region.parts > 1:
                siblings = self._sizes_of_parts(site, region)
            experts = 1 + max(h.piece.memory.expert for h in holdings) if cut != region else 0
            module = holding.leaf.removesuffix(".weight")
            if index == WHOLE and not is_transposed and not heads:
                yield Target(module, cut, siblings, experts=experts)
                continue
            shape = self.shapes[holding.leaf]
            places: dict[Part, Place] = {
                "weight": part_place(holding.leaf, shape, index, is_transposed, heads)
            }
            if tensor.endswith(".weight"):
                biases = self._holdings(f"{tensor.removesuffix('.weight')}.bias")
                # A bias in several pieces is divided like its weight.
                equal = tuple(bias for bias in biases if bias.piece.memory == piece.memory)
                for bias in equal or biases:
                    rows = index if bias.piece.disk == WHOLE else bias.piece.disk
                    size, heads = self.shapes[bias.leaf], bias.piece.heads or heads
                    places["bias"] = part_place(bias.leaf, size, rows, heads=heads)
            # Sites that share a leaf need distinct names, the same for every spelling of a site.
            position = places["weight"].index
            name = f"{module}[{position}]" if position else module
            yield Target(name, cut, siblings, places, experts, index)

    def _siblings(self, holdings: Sequence[Holding], piece: Piece, cut: Region) -> tuple[int, ...]:
        """The number of rows of each part of the matrix to which a piece belongs."""
        sizes = {
            h.piece.memory.part: _size(
                h.piece.disk, memory_shape(h.piece, self.shapes[h.leaf])[cut.axis]
            )
            for h in holdings
            if h.piece.memory.expert == cut.expert and h.piece.memory.parts == cut.parts
        }
        if len(sizes) != cut.parts:
            raise UnmappedError(
                f"only {len(sizes)} of the {cut.parts} weights of {piece.name} are present"
            )
        return tuple(sizes[i] for i in range(cut.parts))

    def _sizes_of_parts(self, site: str, region: Region) -> tuple[int, ...]:
        """The number of rows of each tensor in memory into which an older name is split."""
        pieces = (
            piece
            for tensor in (f"{site}.weight", site)
            for piece in self._fitted(self.names.loaded([tensor])[tensor])
            if piece.disk.parts == region.parts
        )
        sizes = [
            _size(
                first.piece.disk if first.piece.memory == piece.memory else piece.memory,
                self.shapes[first.leaf][region.axis],
            )
            for piece in pieces
            for first in self._holdings(piece.name)[:1]
        ]
        if len(sizes) != region.parts:
            raise UnmappedError(
                f"only {len(sizes)} of the {region.parts} weights it is split into are present"
            )
        return tuple(sizes)


def _size(part: Region, count: int) -> int:
    """The size of a part of an axis; 0 if it has no such part."""
    rows = part.rows(count)
    return 0 if rows is None else len(range(count)[rows])


def _module(name: str) -> str:
    """The module of a tensor."""
    return name.rpartition(".")[0] or name
