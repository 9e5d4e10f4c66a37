"""A copy of the base's weight that an adapter file contains."""

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmix.affine import AffineMap, Base, shift
from jaxmix.families.base import Update
from jaxmix.operators import Dense
from jaxmix.pytrees import register_dataclass

__all__ = ["Rebase"]


@register_dataclass
@dataclass(frozen=True, eq=False)
class Rebase(Update):
    """A new base weight: ``W' = W + (W₁ − W₀)``, where W₀ is the weight of the given base.

    PEFT saves the weights of ``embed_tokens`` and ``lm_head`` with an adapter that targets these
    modules or was trained after they were resized. When it loads the adapter, it writes them into
    the base, *below* all adapters, and updates that read the base (DoRA) see them. Usually W₁
    equals W₀ and nothing changes. A `Replace` would undo earlier adapters instead.

    Strength s: ``W' = W + s·(W₁ − W₀)``.

    Args:
        weight: W₁ (out, in).

    Raises:
        ShapeError: Raised by `compose` if W₁ does not have the base's size, for example because
            tokens were added.

    Example:
        >>> import jax.numpy as jnp
        >>> base = Base(jnp.zeros((1, 2)), (1, 2))
        >>> Rebase(jnp.ones((1, 2))).weight_map(base, jnp.ones(()))(jnp.ones((1, 2))).tolist()
        [[2.0, 2.0]]

    Source: ``peft/utils/save_and_load.py`` (``save_embedding_layers``).
    """

    weight: Float[Array, "out in"]

    family: ClassVar[str] = "Rebase"
    trained: ClassVar[tuple[str, ...]] = ()

    @property
    def is_base_side(self) -> bool:
        """Always: later updates read what it writes."""
        return True

    @property
    def reads_base(self) -> bool:
        """Always: the map is computed from the base's weight."""
        return True

    def weight_map(self, base: Base, strength: Float[Array, ""]) -> AffineMap:
        """``(I, I, s·(W₁ − W₀))``."""
        return shift(Dense(strength * (jnp.asarray(self.weight) - base.read("matrix"))))

    def misfit(self, shape: tuple[int, int]) -> str | None:
        """Checks that W₁ has the base's size."""
        if self.weight.shape == shape:
            return None
        return (
            f"the base weight in the file has shape {self.weight.shape}, expected {shape}. If the "
            "adapter was trained with new tokens, resize the base's vocabulary first"
        )

    def size(self) -> str:
        """A description without numbers."""
        return "base's own weight"
