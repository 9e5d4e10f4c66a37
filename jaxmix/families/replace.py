"""Replaced leaves: modules saved whole, and trained biases."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmix.affine import AffineMap, Base, identity
from jaxmix.families.base import Update
from jaxmix.operators import Dense, Diagonal, Identity

__all__ = ["Replace"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Replace(Update):
    """A replaced leaf: ``W' = W₁`` and ``b' = b₁``; None leaves a leaf as it is.

    PEFT's ``modules_to_save`` and its trained biases (``bias="all"``, ``"lora_only"``). PEFT puts
    them into the base, so what reads the base after them (DoRA) reads them.

    Strength s interpolates linearly: ``W' = (1 − s)·W + s·W₁``.

    Args:
        weight: W₁, in PyTorch's axes (out, in, *k); a norm's (n,).
        bias: b₁ (out,).

    Raises:
        ShapeError: Raised by `compose` if a leaf has another size.

    Example:
        >>> import jax.numpy as jnp
        >>> half = Replace(jnp.ones((1, 2))).weight_map(Base(None, (1, 2)), jnp.asarray(0.5))
        >>> half(jnp.zeros((1, 2))).tolist()
        [[0.5, 0.5]]

    Source: ``peft/utils/other.py`` (``ModulesToSaveWrapper``).
    """

    weight: Float[Array, "..."] | None = None
    bias: Float[Array, " out"] | None = None

    family: ClassVar[str] = "Replace"
    trained: ClassVar[tuple[str, ...]] = ("weight", "bias")
    is_base_side: ClassVar[bool] = True

    @property
    def has_weight(self) -> bool:
        """Whether there is a W₁."""
        return self.weight is not None

    @property
    def has_bias(self) -> bool:
        """Whether there is a b₁."""
        return self.bias is not None

    def weight_map(self, base: Base, strength: Float[Array, ""]) -> AffineMap:
        """``(1 − s, I, s·W₁)``."""
        return _towards(self.weight, base.shape, strength)

    def bias_map(self, base: Base, strength: Float[Array, ""]) -> AffineMap:
        """``(1 − s, I, s·b₁)``."""
        return _towards(self.bias, (base.shape[0], 1), strength)

    def with_transposed_weight(self) -> "Replace":
        """With ``W₁ᵀ``, where W₁ is a matrix."""
        if self.weight is None or self.weight.ndim != 2:
            return self
        return replace(self, weight=self.weight.T)

    def misfit(self, shape: tuple[int, int]) -> str | None:
        """Checks that the leaves have the base's sizes."""
        for name, leaf, size in (("weight", self.weight, shape), ("bias", self.bias, shape[:1])):
            if leaf is not None and (leaf.shape[:1], leaf.size) != (size[:1], math.prod(size)):
                return f"saved {name} has shape {leaf.shape}, expected {size}"
        return None

    def size(self) -> str:
        """Which leaves it replaces."""
        return " and ".join(n for n in ("weight", "bias") if getattr(self, n) is not None)


def _towards(leaf: Array | None, shape: tuple[int, int], strength: Array) -> AffineMap:
    """The line from what is there to ``leaf``."""
    if leaf is None:
        return identity(shape)
    rest = Diagonal(jnp.broadcast_to(1 - strength, shape[:1]), gates=True)
    return AffineMap(rest, Identity(shape[1]), Dense(strength * leaf.reshape(shape)))
