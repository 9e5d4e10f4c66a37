"""UniLoRA: a LoRA whose factors take all their values from one short vector."""

from dataclasses import dataclass, field
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxmix.affine import AffineMap, Base, shift
from jaxmix.families.base import Update, mismatch
from jaxmix.families.positions import index_misfit
from jaxmix.operators import LowRank
from jaxmix.pytrees import register_dataclass

__all__ = ["UniLoRA"]


@register_dataclass
@dataclass(frozen=True, eq=False)
class UniLoRA(Update):
    """UniLoRA: ``W' = W + B A`` with ``A = θ[i_A] ⊙ c_A`` and ``B = θ[i_B] ⊙ c_B``.

    Strength s: ``W' = W + s·B A``.

    Args:
        theta: θ (d,), a single array shared by all sites, PEFT's ``unilora_theta_d``.
        a_indices: i_A (r, in), the index into θ of each entry of A, PEFT's ``unilora_indices_A``.
        b_indices: i_B (out, r), likewise for B, PEFT's ``unilora_indices_B``.
        a_scales: c_A (r, in), 1/√n for an entry of θ that is used n times, PEFT's
            ``unilora_scales_A``.
        b_scales: c_B (out, r), PEFT's ``unilora_scales_B``.
        transposed: Whether PyTorch stores the weight as (in, out); None if unknown.

    Raises:
        ShapeError: Raised by `compose` if the factors do not fit the weight.

    Example:
        >>> first, last = jnp.zeros((1, 1), int), jnp.ones((1, 1), int)
        >>> ones = jnp.ones((1, 1))
        >>> update = UniLoRA(jnp.array([2.0, 3.0]), first, last, ones, ones)
        >>> update.weight_map(Base(None, (1, 1)), jnp.ones(())).shift.dense().tolist()
        [[6.0]]

    Source: https://arxiv.org/abs/2506.00799; ``peft/tuners/unilora/layer.py``.
    """

    theta: Float[Array, " d"]
    a_indices: Int[Array, "r in"]
    b_indices: Int[Array, "out r"]
    a_scales: Float[Array, "r in"]
    b_scales: Float[Array, "out r"]
    transposed: bool | None = field(default=False, metadata={"static": True})

    family: ClassVar[str] = "UniLoRA"
    trained: ClassVar[tuple[str, ...]] = ("theta",)

    def weight_map(self, base: Base, strength: Float[Array, ""]) -> AffineMap:
        """``(I, I, s·B A)``."""
        theta = jnp.asarray(self.theta)
        a = theta[self.a_indices] * self.a_scales
        b = theta[self.b_indices] * self.b_scales
        return shift(LowRank(b, a).scaled(strength))

    def misfit(self, shape: tuple[int, int]) -> str | None:
        """Checks that B A has the weight's sizes and that the indices are inside θ."""
        out_size, in_size = shape
        factors = {
            "unilora_theta_d": (self.theta, ("d",)),
            "unilora_indices_A": (self.a_indices, ("r", in_size)),
            "unilora_indices_B": (self.b_indices, (out_size, "r")),
            "unilora_scales_A": (self.a_scales, ("r", in_size)),
            "unilora_scales_B": (self.b_scales, (out_size, "r")),
        }
        count = self.theta.shape[0] if self.theta.ndim else 0
        return (
            mismatch(factors, shape)
            or index_misfit("unilora_indices_A", self.a_indices, count)
            or index_misfit("unilora_indices_B", self.b_indices, count)
        )

    def size(self) -> str:
        """The rank, and the length of θ."""
        return f"rank {self.a_indices.shape[0]} of {self.theta.shape[0]} values"
