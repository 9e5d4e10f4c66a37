"""TinyLoRA: a few trained values between singular vectors of the base."""

from dataclasses import dataclass, field
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmix.affine import AffineMap, Base, shift
from jaxmix.families.base import Update, mismatch
from jaxmix.operators import LowRank
from jaxmix.pytrees import register_dataclass

__all__ = ["TinyLoRA"]


@register_dataclass
@dataclass(frozen=True, eq=False)
class TinyLoRA(Update):
    """TinyLoRA: ``W' = W + B (Σᵢ vᵢ Pᵢ) A``.

    A and B are singular vectors of the base, multiplied by the roots of its singular values. The
    file contains them. The formula also holds for an embedding (V, D).

    Strength s: ``W' = W + s·B (Σᵢ vᵢ Pᵢ) A``.

    Args:
        a: A (r, in), PEFT's ``tinylora_A``.
        b: B (out, r), PEFT's ``tinylora_B``.
        projections: P (u, r, r), PEFT's ``tinylora_P``.
        v: v (u,), a single array shared by all sites of a group, PEFT's ``tinylora_v``.
        number: The index of the module among the model's adapted modules, which determines its
            vector v in PEFT; None if unknown. `export` needs it, the map does not.
        seed: The seed from which PEFT draws P, None if unknown; see `for_export`.
        transposed: Whether PyTorch stores the weight as (in, out); None if unknown.

    Raises:
        ShapeError: Raised by `compose` if the factors do not fit the weight.

    Example:
        >>> ones = jnp.ones((1, 1))
        >>> update = TinyLoRA(ones, ones, jnp.ones((2, 1, 1)), jnp.ones(2))
        >>> update.weight_map(Base(None, (1, 1)), jnp.ones(())).shift.dense().tolist()
        [[2.0]]

    Source: https://arxiv.org/abs/2602.04118; ``peft/tuners/tinylora/layer.py``.
    """

    a: Float[Array, "r in"]
    b: Float[Array, "out r"]
    projections: Float[Array, "u r r"]
    v: Float[Array, " u"]
    number: int | None = field(default=None, metadata={"static": True})
    seed: int | None = field(default=None, metadata={"static": True})
    transposed: bool | None = field(default=False, metadata={"static": True})

    family: ClassVar[str] = "TinyLoRA"
    trained: ClassVar[tuple[str, ...]] = ("v",)
    for_export: ClassVar[tuple[str, ...]] = ("seed",)

    def weight_map(self, base: Base, strength: Float[Array, ""]) -> AffineMap:
        """``(I, I, s·B (Σᵢ vᵢ Pᵢ) A)``."""
        middle = jnp.einsum("u,ujk->jk", strength * self.v, self.projections)
        return shift(LowRank(self.b, middle @ self.a))

    def misfit(self, shape: tuple[int, int]) -> str | None:
        """Checks that B P A has the weight's sizes and that v has an entry per projection."""
        out_size, in_size = shape
        factors = {
            "tinylora_A": (self.a, ("r", in_size)),
            "tinylora_B": (self.b, (out_size, "r")),
            "tinylora_P": (self.projections, ("u", "r", "r")),
            "tinylora_v": (self.v, ("u",)),
        }
        return mismatch(factors, shape)

    def size(self) -> str:
        """The number of trained values, and the rank."""
        return f"{self.v.shape[0]} values at rank {self.a.shape[0]}"
