"""Updates of a fused weight that can't be cut: all parts are needed to apply them."""

from dataclasses import dataclass, field
from typing import ClassVar, NoReturn

from jaxtyping import Array, Float

from jaxmix.affine import Base
from jaxmix.families.wrapped import WrappedUpdate
from jaxmix.pytrees import register_dataclass

__all__ = ["PartOf", "RowRange"]

# Start, stop and step.
RowRange = tuple[int, int, int]


@register_dataclass
@dataclass(frozen=True, eq=False)
class PartOf(WrappedUpdate):
    """An update of a fused weight, at one of the weights that a model has instead.

    An update such as KaSA needs the fused weight. The code that applies it joins the parts, applies
    the updates of all adapters in order, and splits the result.

    Args:
        update: The update of the fused weight, or of this part alone.
        names: The names of all parts.
        rows: The rows of the fused weight that each part holds.
        number: The number of this part.
        is_whole: Whether `update` is an update of the fused weight.
        order: The position of the adapter in its mix.

    Example:
        >>> from jaxmix.families.delta import Delta
        >>> import jax.numpy as jnp
        >>> part = PartOf(Delta(jnp.ones((2, 3))), ("q", "k"), ((0, 1, 1), (1, 2, 1)), 1)
        >>> part.misfit((1, 3)), part.misfit((2, 3))
        (None, 'part 2 of 2 of a fused weight has 2 rows, expected 1')

    Source: docs/design.md, "Names".
    """

    names: tuple[str, ...] = field(metadata={"static": True})
    rows: tuple[RowRange, ...] = field(metadata={"static": True})
    number: int = field(metadata={"static": True})
    is_whole: bool = field(default=True, metadata={"static": True})
    order: int = field(default=0, metadata={"static": True})

    family: ClassVar[str] = "PartOf"
    trained: ClassVar[tuple[str, ...]] = ("update",)

    @property
    def reads_base(self) -> bool:
        """Always: the parts' weights are needed together."""
        return True

    def weight_map(self, base: Base, strength: Float[Array, ""]) -> NoReturn:
        """Raises a NotImplementedError, since a single part has no map."""
        raise NotImplementedError(
            f"{self.names[self.number]}: its {self.update.family} is applied to "
            f"{' and '.join(self.names)} together, so it has no map of its own. The code that runs "
            "maps must join these parts first (jaxmix.apply.joined)."
        )

    bias_map = weight_map

    def misfit(self, shape: tuple[int, int]) -> str | None:
        """Checks the number of rows of the part, and the update against its weight."""
        sizes = [len(range(*rows)) for rows in self.rows]
        if shape[0] != sizes[self.number]:
            return (
                f"part {self.number + 1} of {len(sizes)} of a fused weight has {shape[0]} rows, "
                f"expected {sizes[self.number]}"
            )
        return self.update.misfit((sum(sizes), shape[1]) if self.is_whole else shape)

    def size(self) -> str:
        """The size of the update, and the number of the part."""
        part = f"part {self.number + 1} of {len(self.names)}"
        return f"{self.update.family} {self.update.size()}, {part}"
