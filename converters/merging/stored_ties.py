"""The tied tensors of a checkpoint, by the names that they have in its files.

transformers' table has the names in memory (`names.ties`). A tensor that is not in the files gets
the name under which transformers looks for it when it loads them.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jaxmix.converters.checkpoints.huggingface import CONFIG_FILE, Checkpoint
from jaxmix.converters.names import modules_of
from jaxmix.converters.names.table import base_class, base_prefix
from jaxmix.converters.names.ties import Tie, classes_with_ties, has_ties, ties_of
from jaxmix.placement.canonical import Modules
from jaxmix.placement.name_map import NameMap
from jaxmix.placement.transforms import Piece, loaded_pieces

__all__ = ["StoredTie", "StoredTies", "find_ties"]


@dataclass(frozen=True)
class StoredTie:
    """Two tensors that are one in memory.

    Args:
        target: The name on disk of one of them; it need not be in the files.
        source: The name on disk of the other.
        tie: The tie between their names in memory.
    """

    target: str
    source: str
    tie: Tie

    @property
    def is_inner_bias(self) -> bool:
        """Whether it ties the bias of a head to an unused bias of the module around the head.

        BERT's ``cls.predictions.bias`` is used nowhere but as ``cls.predictions.decoder.bias``.
        """
        modules = sorted((_module(self.target), _module(self.source)), key=len)
        return modules[1].startswith(f"{modules[0]}.") and self.target.endswith(".bias")


@dataclass(frozen=True)
class StoredTies:
    """The ties of a checkpoint.

    Args:
        ties: All of them.
        sites: The names on disk of modules whose tensors are not in the files, by their names in
            memory, with and without the base model's prefix.
        new_class: The class of the model that has the ties, if config.json names another class.
    """

    ties: tuple[StoredTie, ...]
    sites: Mapping[str, str]
    new_class: str | None = None


def find_ties(checkpoint: Checkpoint, sites: Collection[str]) -> StoredTies | None:
    """Returns the tied tensors of a checkpoint, by transformers' table and config.json.

    Args:
        checkpoint: The base.
        sites: The sites of the adapters, under the adapters' names.

    Returns:
        The ties; None if the model is not in the table, in which case only the names of tensors
        show whether they are tied.
    """
    config: Mapping[str, Any] = {} if checkpoint.is_file else checkpoint.json(CONFIG_FILE)
    if not has_ties(config):
        is_known = base_class(config) is not None and "auto_map" not in config
        return StoredTies((), {}) if is_known else None
    shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
    modules = modules_of(checkpoint) or Modules(NameMap("none"), shapes)
    name, is_new = _model_class(config, modules, sites)
    ties = ties_of(config, name)
    names = dict(_disk_names(ties, modules))
    stored = tuple(StoredTie(names[tie.target], names[tie.source], tie) for tie in ties)
    prefix = base_prefix(config)
    missing = {
        spelling: _module(names[memory])
        for memory in names
        if names[memory] not in shapes
        for spelling in _spellings(_module(memory), prefix)
    }
    return StoredTies(stored, missing, name if is_new else None)


def _model_class(
    config: Mapping[str, Any], modules: Modules, sites: Collection[str]
) -> tuple[str | None, bool]:
    """Returns the class of the model in memory, and whether config.json names another class.

    The base of a model with a head is often saved without it. Adapters of such a model have the
    base model's prefix, or change the head itself.
    """
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    base, prefix = base_class(config), base_prefix(config)
    if name is not None and name != base:
        return name, False
    candidates = [other for other in classes_with_ties(config) if other != base]
    wanted = {spelling for site in sites for spelling in _spellings(site, prefix)}
    for other in candidates:
        ties = [tie for tie in ties_of(config, other) if not modules.pieces(tie.target)]
        if any(_module(tie.target) in wanted for tie in ties) and _is_complete(ties, modules):
            return other, name is not None
    start = f"{prefix}."
    has_prefix = any(leaf.startswith(start) for leaf in modules.shapes)
    if prefix and (has_prefix or any(site.startswith(start) for site in sites)):
        for other in candidates:
            ties = ties_of(config, other)
            if has_prefix or _is_complete(ties, modules):
                return other, name is not None
    return name, False


def _is_complete(ties: Iterable[Tie], modules: Modules) -> bool:
    """Whether every tie has a tensor in the files, so that nothing else of the head is missing."""
    return all(modules.pieces(tie.target) or modules.pieces(tie.source) for tie in ties)


def _disk_names(ties: Iterable[Tie], modules: Modules) -> Iterator[tuple[str, str]]:
    """Yields the name in memory and the name on disk of each tied tensor."""
    ties = list(ties)
    memory = list(dict.fromkeys(name for tie in ties for name in (tie.source, tie.target)))
    leaves = {name: leaf for name in memory if (leaf := _leaf(name, modules)) is not None}
    yield from leaves.items()
    for name in memory:
        if name not in leaves:
            partners = [
                leaves[other]
                for tie in ties
                if name in (tie.source, tie.target)
                for other in (tie.source, tie.target)
                if other in leaves
            ]
            yield name, _new_name(name, partners or list(leaves.values()), leaves, modules)


def _leaf(name: str, modules: Modules) -> str | None:
    """Returns the leaf that holds exactly a tensor in memory; None if there is no such leaf."""
    holdings = modules.pieces(name)
    if len(holdings) != 1:
        return None
    piece = holdings[0].piece
    return holdings[0].leaf if piece == Piece(piece.name) else None


def _new_name(
    name: str, partners: Iterable[str], leaves: Mapping[str, str], modules: Modules
) -> str:
    """Returns a name on disk that transformers loads as a name in memory, in the files' style."""
    prefix = modules.names.prefix
    is_bare = any(
        memory.startswith(f"{prefix}.") and not _loads_as(leaf, modules).startswith(f"{prefix}.")
        for memory, leaf in leaves.items()
    )
    wanted = name.removeprefix(f"{prefix}.") if prefix and is_bare else name
    parts = wanted.split(".")
    for partner in partners:
        outer = partner.split(".")
        for i in range(len(outer), -1, -1):
            for j in range(len(parts)):
                candidate = ".".join((*outer[:i], *parts[j:]))
                if candidate not in modules.shapes and _loads_as(candidate, modules) == wanted:
                    return candidate
    return wanted


def _loads_as(leaf: str, modules: Modules) -> str:
    """Returns the name in memory under which transformers loads a tensor; "" if it splits it."""
    pieces = loaded_pieces([leaf], modules.names.transforms)[leaf]
    return pieces[0].name if len(pieces) == 1 else ""


def _spellings(name: str, prefix: str) -> tuple[str, ...]:
    """Returns a name, also with the base model's prefix added and removed."""
    return (name, f"{prefix}.{name}", name.removeprefix(f"{prefix}.")) if prefix else (name,)


def _module(name: str) -> str:
    return name.rpartition(".")[0]
