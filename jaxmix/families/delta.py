"""Deltas: adds a dense matrix to the weight and a vector to the bias."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Array, Float

from jaxmix.affine import AffineMap, Base, identity, shift
from jaxmix.families.leaf_update import LeafUpdate
from jaxmix.operators import Dense
from jaxmix.pytrees import register_dataclass

__all__ = ["Delta"]


@register_dataclass
@dataclass(frozen=True, eq=False)
class Delta(LeafUpdate):
    """A difference without structure: ``W' = W + Δ`` and ``b' = b + δ``.

    Full fine-tuning gives such an update, LyCORIS stores it as ``diff`` and ``diff_b``, and
    `jaxmix.combine` returns it for adapters without common factors.

    Strength s: ``W' = W + s·Δ`` and ``b' = b + s·δ``.

    Args:
        weight: Δ, in PyTorch's axes ``(out, in, *k)``, or (n,) for a norm; None to keep the weight.
        bias: δ (out,); None to keep the bias.

    Raises:
        ShapeError: Raised by `compose` if Δ or δ does not have the size of its leaf.

    Example:
        >>> import jax.numpy as jnp
        >>> half = Delta(jnp.ones((1, 2))).weight_map(Base(None, (1, 2)), jnp.asarray(0.5))
        >>> half(jnp.ones((1, 2))).tolist()
        [[1.5, 1.5]]

    Source: LyCORIS, ``lycoris/modules/full.py``, ``lycoris/modules/norms.py``.
    """

    family: ClassVar[str] = "Delta"
    labels: ClassVar[tuple[str, str]] = ("diff", "diff_b")

    def weight_map(self, base: Base, strength: Float[Array, ""]) -> AffineMap:
        """``(I, I, s·Δ)``."""
        return _shifted(self.weight, base.shape, strength)

    def bias_map(self, base: Base, strength: Float[Array, ""]) -> AffineMap:
        """``(I, I, s·δ)``."""
        return _shifted(self.bias, (base.shape[0], 1), strength)


def _shifted(leaf: Array | None, shape: tuple[int, int], strength: Array) -> AffineMap:
    """Returns ``x ↦ x + s·leaf``, or the identity without a leaf."""
    return identity(shape) if leaf is None else shift(Dense(strength * leaf.reshape(shape)))
