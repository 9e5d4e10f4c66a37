"""A copy of the base's own weight that a file brings along."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmix.affine import AffineMap, Base, shift
from jaxmix.families.base import Update
from jaxmix.operators import Dense

__all__ = ["Rebase"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Rebase(Update):
    """The base's weight is another one: ``W' = W + (W₁ − W₀)``, with W₀ the base that is given.

    PEFT saves the weights of ``embed_tokens`` and ``lm_head`` with an adapter that targets these
    modules, or that was trained after they had been resized, and puts them into the base when it
    loads it, *under* every adapter; what reads the base afterwards (DoRA) reads them. As a rule W₁
    is W₀ and this changes nothing; a `Replace` would undo the adapters that came before.

    Strength s: ``W' = W + s·(W₁ − W₀)``.

    Args:
        weight: W₁ (out, in).

    Raises:
        ShapeError: Raised by `compose` if W₁ has another size than the base, as after new tokens.

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
    reads_base: ClassVar[bool] = True
    is_base_side: ClassVar[bool] = True

    def weight_map(self, base: Base, strength: Float[Array, ""]) -> AffineMap:
        """``(I, I, s·(W₁ − W₀))``."""
        return shift(Dense(strength * (jnp.asarray(self.weight) - base.read("matrix"))))

    def misfit(self, shape: tuple[int, int]) -> str | None:
        """Checks that W₁ has the base's size."""
        if self.weight.shape == shape:
            return None
        return (
            f"the base's weight in the file has shape {self.weight.shape}, expected {shape}; if "
            "the adapter was trained with new tokens, resize the base's vocabulary first"
        )

    def size(self) -> str:
        """What it is."""
        return "base's own weight"
