"""Deltas: a whole matrix added to the weight, a vector added to the bias."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import jax
from jaxtyping import Array, Float

from jaxmix.affine import AffineMap, Base, identity, shift
from jaxmix.families.base import Update
from jaxmix.operators import Dense

__all__ = ["Delta"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Delta(Update):
    """A difference without structure: ``W' = W + Δ`` and ``b' = b + δ``; None leaves a leaf alone.

    What a full fine-tuning changed, LyCORIS's ``diff`` and ``diff_b``, and what `jaxmix.combine`
    makes of adapters that have no common factors.

    Strength s: ``W' = W + s·Δ`` and ``b' = b + s·δ``.

    Args:
        weight: Δ, in PyTorch's axes (out, in, *k); a norm's (n,).
        bias: δ (out,).

    Raises:
        ShapeError: Raised by `compose` if a leaf has another size.

    Example:
        >>> import jax.numpy as jnp
        >>> half = Delta(jnp.ones((1, 2))).weight_map(Base(None, (1, 2)), jnp.asarray(0.5))
        >>> half(jnp.ones((1, 2))).tolist()
        [[1.5, 1.5]]

    Source: LyCORIS, ``lycoris/modules/full.py``, ``lycoris/modules/norms.py``.
    """

    weight: Float[Array, "..."] | None = None
    bias: Float[Array, " out"] | None = None

    family: ClassVar[str] = "Delta"
    trained: ClassVar[tuple[str, ...]] = ("weight", "bias")

    @property
    def has_weight(self) -> bool:
        """Whether there is a Δ."""
        return self.weight is not None

    @property
    def has_bias(self) -> bool:
        """Whether there is a δ."""
        return self.bias is not None

    def weight_map(self, base: Base, strength: Float[Array, ""]) -> AffineMap:
        """``(I, I, s·Δ)``."""
        return _added(self.weight, base.shape, strength)

    def bias_map(self, base: Base, strength: Float[Array, ""]) -> AffineMap:
        """``(I, I, s·δ)``."""
        return _added(self.bias, (base.shape[0], 1), strength)

    def with_transposed_weight(self) -> "Delta":
        """With ``Δᵀ``, where Δ is a matrix."""
        if self.weight is None or self.weight.ndim != 2:
            return self
        return replace(self, weight=self.weight.T)

    def misfit(self, shape: tuple[int, int]) -> str | None:
        """Checks that Δ and δ have the base's sizes."""
        for name, leaf, size in (("diff", self.weight, shape), ("diff_b", self.bias, shape[:1])):
            if leaf is not None and (leaf.shape[:1], leaf.size) != (size[:1], math.prod(size)):
                return f"{name} has shape {leaf.shape}, expected {size}"
        return None

    def size(self) -> str:
        """Which leaves it changes."""
        return " and ".join(n for n in ("weight", "bias") if getattr(self, n) is not None)


def _added(leaf: Array | None, shape: tuple[int, int], strength: Array) -> AffineMap:
    """``x ↦ x + s·leaf``."""
    return identity(shape) if leaf is None else shift(Dense(strength * leaf.reshape(shape)))
