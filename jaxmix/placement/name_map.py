"""How the names of a model's tensors on disk and in memory are related."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from jaxmix.placement.regions import Piece
from jaxmix.placement.templates import Templates
from jaxmix.placement.transforms import Transform, loaded_pieces

__all__ = ["NameMap"]


@dataclass(frozen=True)
class NameMap:
    """How the tensors of a model's checkpoint are renamed when it is loaded.

    Args:
        name: The model's type, for messages.
        transforms: What is applied to the names on disk, in order.
        prefix: The prefix of the base model in a model with a head, such as ``"model"``.
        inputs_first: The modules whose experts are stored as (experts, in, out), by the ends of
            their names; all others are (experts, out, in).
        templates: A table of modules by both names, instead of transforms.
    """

    name: str
    transforms: tuple[Transform, ...] = ()
    prefix: str = ""
    inputs_first: tuple[str, ...] = ()
    templates: Templates | None = None

    def loaded(
        self, names: Iterable[str], count_experts: Callable[[str], int] | None = None
    ) -> Mapping[str, tuple[Piece, ...]]:
        """Returns where tensors are in memory.

        Args:
            names: The tensors' names on disk.
            count_experts: As in `transforms.loaded_pieces`.
        """
        if self.templates is not None:
            return {name: self.templates.pieces(name) for name in names}
        return loaded_pieces(names, self.transforms, count_experts)

    def has_inputs_first(self, module: str) -> bool:
        """Returns whether the experts of a module are stored as (experts, in, out).

        Args:
            module: A module's name in memory.
        """
        return any(module == end or module.endswith(f".{end}") for end in self.inputs_first)
