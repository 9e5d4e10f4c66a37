"""Replaced leaves: modules saved in full, and trained biases."""

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmix.affine import AffineMap, Base, identity
from jaxmix.families.leaf_update import LeafUpdate
from jaxmix.operators import Dense, Diagonal, Identity
from jaxmix.pytrees import register_dataclass

__all__ = ["Replace"]


@register_dataclass
@dataclass(frozen=True, eq=False)
class Replace(LeafUpdate):
    """A replaced leaf: ``W' = W₁`` and ``b' = b₁``.

    These are PEFT's ``modules_to_save`` and its trained biases (``bias="all"``, ``"lora_only"``).
    PEFT writes them into the base, so later updates that read the base (DoRA) see them.

    Strength s interpolates linearly: ``W' = (1 − s)·W + s·W₁``.

    Args:
        weight: W₁, in PyTorch's axes ``(out, in, *k)``, or (n,) for a norm; None to keep
            the weight.
        bias: b₁ (out,); None to keep the bias.

    Raises:
        ShapeError: Raised by `compose` if W₁ or b₁ does not have the size of its leaf.

    Example:
        >>> import jax.numpy as jnp
        >>> half = Replace(jnp.ones((1, 2))).weight_map(Base(None, (1, 2)), jnp.asarray(0.5))
        >>> half(jnp.zeros((1, 2))).tolist()
        [[0.5, 0.5]]

    Source: ``peft/utils/other.py`` (``ModulesToSaveWrapper``).
    """

    family: ClassVar[str] = "Replace"
    labels: ClassVar[tuple[str, str]] = ("saved weight", "saved bias")

    @property
    def is_base_side(self) -> bool:
        """Always: later updates read what it writes."""
        return True

    def weight_map(self, base: Base, strength: Float[Array, ""]) -> AffineMap:
        """``(1 − s, I, s·W₁)``."""
        return _interpolation(self.weight, base.shape, strength)

    def bias_map(self, base: Base, strength: Float[Array, ""]) -> AffineMap:
        """``(1 − s, I, s·b₁)``."""
        return _interpolation(self.bias, (base.shape[0], 1), strength)


def _interpolation(leaf: Array | None, shape: tuple[int, int], strength: Array) -> AffineMap:
    """Returns ``x ↦ (1 − s)·x + s·leaf``, or the identity without a leaf."""
    if leaf is None:
        return identity(shape)
    kept = Diagonal(jnp.broadcast_to(1 - strength, shape[:1]), gates=True)
    return AffineMap(kept, Identity(shape[1]), Dense(strength * leaf.reshape(shape)))
