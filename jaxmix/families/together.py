"""Several updates of one adapter at one site: a LoRA and the bias that was trained beside it."""

from dataclasses import dataclass
from functools import reduce
from typing import ClassVar

import jax
from jaxtyping import Array, Float

from jaxmix.affine import AffineMap, Base, identity
from jaxmix.families.base import Leaf, Update, joint_flag, maps

__all__ = ["Together", "parts_of"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Together(Update):
    """The updates of one adapter that share a site, in order: ``uₙ ∘ … ∘ u₁``.

    Strength s goes to each of them.

    Args:
        parts: the updates, the first one first.

    Raises:
        ShapeError: by `compose`, where a part does not fit the weight.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxmix.families import Replace
        >>> both = Together((Replace(weight=jnp.ones((1, 1))), Replace(bias=jnp.ones(1))))
        >>> both.has_bias, both.size()
        (True, 'weight + bias')

    Source: a product in the monoid of `jaxmix.affine`; PEFT's ``bias="lora_only"``.
    """

    parts: tuple[Update, ...]

    family: ClassVar[str] = "Together"
    trained: ClassVar[tuple[str, ...]] = ("parts",)

    @property
    def reads_base(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Where one of them does."""
        return any(part.reads_base for part in self.parts)

    @property
    def is_base_side(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Where one of them is."""
        return any(part.is_base_side for part in self.parts)

    @property
    def keeps_tie(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Where all of them do that change the weight."""
        return all(part.keeps_tie or not part.has_weight for part in self.parts)

    @property
    def transposed(self) -> bool | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Where one of them says so."""
        return joint_flag(part.transposed for part in self.parts)

    @property
    def has_weight(self) -> bool:
        """Where one of them has."""
        return any(part.has_weight for part in self.parts)

    @property
    def has_bias(self) -> bool:
        """Where one of them has."""
        return any(part.has_bias for part in self.parts)

    @property
    def turns_bias(self) -> bool:
        """Where one of them does."""
        return any(part.turns_bias for part in self.parts)

    def weight_map(self, base: Base, strength: Float[Array, ""]) -> AffineMap:
        """The parts' maps, composed."""
        return self._composed(base, strength, "weight", base.shape)

    def bias_map(self, base: Base, strength: Float[Array, ""]) -> AffineMap:
        """The parts' maps of the bias, composed."""
        return self._composed(base, strength, "bias", (base.shape[0], 1))

    def rebased(self, base: Base, strength: Float[Array, ""]) -> Base:
        """The base as the parts leave it to those after them, one by one."""
        return reduce(lambda now, part: part.rebased(now, strength), self.parts, base)

    def _composed(
        self, base: Base, strength: Float[Array, ""], leaf: Leaf, shape: tuple[int, int]
    ) -> AffineMap:
        made = maps([(strength, part) for part in self.parts], base, leaf)
        return reduce(lambda before, later: later.after(before), made, identity(shape))

    def turned(self) -> "Together":
        """With each part turned."""
        return Together(tuple(part.turned() for part in self.parts))

    def misfit(self, shape: tuple[int, int]) -> str | None:
        """The first part's that does not fit."""
        return next((said for part in self.parts if (said := part.misfit(shape))), None)

    def size(self) -> str:
        """The parts' sizes."""
        return " + ".join(part.size() for part in self.parts)


def parts_of(update: Update) -> tuple[Update, ...]:
    """The updates of which one is made: itself, if it is not of several.

    Args:
        update: an update.

    Returns:
        Its parts, the one that is applied first first.

    Example:
        >>> one = Update()
        >>> parts_of(one) == (one,)
        True

    Source: DESIGN.md, words: update.
    """
    return update.parts if isinstance(update, Together) else (update,)
