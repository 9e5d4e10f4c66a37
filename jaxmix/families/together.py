"""Several updates of one adapter at one site, such as a LoRA and a bias trained with it."""

from dataclasses import dataclass
from functools import reduce
from typing import ClassVar

import numpy as np
from jaxtyping import Array, Float

from jaxmix.affine import AffineMap, Base, identity
from jaxmix.families.base import Part, Update, joint_flag, maps
from jaxmix.pytrees import register_dataclass

__all__ = ["Together", "parts_of"]


@register_dataclass
@dataclass(frozen=True, eq=False)
class Together(Update):
    """A composition of updates that one adapter has at one site, ``uₙ ∘ … ∘ u₁``.

    Strength s applies to each of them.

    Args:
        parts: The updates u₁ … uₙ, in order of application.

    Raises:
        ShapeError: Raised by `compose` if a part does not fit the weight.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxmix.families import Replace
        >>> both = Together((Replace(weight=jnp.ones((1, 1))), Replace(bias=jnp.ones(1))))
        >>> both.has_bias, both.size()
        (True, 'weight + bias')

    Source: a product in the monoid of ``jaxmix.affine``; PEFT's ``bias="lora_only"``.
    """

    parts: tuple[Update, ...]

    family: ClassVar[str] = "Together"
    trained: ClassVar[tuple[str, ...]] = ("parts",)

    @property
    def reads_base(self) -> bool:
        """Whether any part reads the base."""
        return any(part.reads_base for part in self.parts)

    @property
    def is_base_side(self) -> bool:
        """Whether any part is base-side."""
        return any(part.is_base_side for part in self.parts)

    @property
    def keeps_tie(self) -> bool:
        """Whether all parts that change the weight keep the tie."""
        return all(part.keeps_tie or not part.has_weight for part in self.parts)

    @property
    def transposed(self) -> bool | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The combined flag of the parts."""
        return joint_flag(part.transposed for part in self.parts)

    @property
    def has_weight(self) -> bool:
        """Whether any part changes the weight."""
        return any(part.has_weight for part in self.parts)

    @property
    def has_bias(self) -> bool:
        """Whether any part changes the base's bias."""
        return any(part.has_bias for part in self.parts)

    @property
    def maps_bias(self) -> bool:
        """Whether any part maps the bias."""
        return any(part.maps_bias for part in self.parts)

    def weight_map(self, base: Base, strength: Float[Array, ""]) -> AffineMap:
        """The composition of the parts' maps."""
        return self._composed(base, strength, "weight", base.shape)

    def bias_map(self, base: Base, strength: Float[Array, ""]) -> AffineMap:
        """The composition of the parts' maps of the bias."""
        return self._composed(base, strength, "bias", (base.shape[0], 1))

    def rebased(self, base: Base, strength: Float[Array, ""]) -> Base:
        """Returns the base after all base-side parts."""
        return reduce(lambda current, part: part.rebased(current, strength), self.parts, base)

    def _composed(
        self, base: Base, strength: Float[Array, ""], leaf: Part, shape: tuple[int, int]
    ) -> AffineMap:
        in_order = maps([(strength, part) for part in self.parts], base, leaf)
        return reduce(lambda before, later: later.after(before), in_order, identity(shape))

    @property
    def decomposes(self) -> bool:
        """Whether any part decomposes the base's weight."""
        return any(part.decomposes for part in self.parts)

    def decomposed(self, matrix: np.ndarray) -> "Together":
        """Returns the update with the decompositions that its parts need."""
        return Together(tuple(part.decomposed(matrix) for part in self.parts))

    def with_transposed_weight(self) -> "Together":
        """Returns the update with each part transposed."""
        return Together(tuple(part.with_transposed_weight() for part in self.parts))

    def misfit(self, shape: tuple[int, int]) -> str | None:
        """Returns the message of the first part that does not fit."""
        return next((problem for part in self.parts if (problem := part.misfit(shape))), None)

    def size(self) -> str:
        """The sizes of the parts."""
        return " + ".join(part.size() for part in self.parts)


def parts_of(update: Update) -> tuple[Update, ...]:
    """Returns the parts of a `Together`, or the update itself as the only part.

    Args:
        update: Any update.

    Returns:
        Its parts, in order of application.

    Example:
        >>> update = Update()
        >>> parts_of(update) == (update,)
        True

    Source: ``docs/design.md``, "A mix is a product in a monoid of affine maps".
    """
    return update.parts if isinstance(update, Together) else (update,)
