"""TinyLoRA: the base's own singular vectors, and a few trained numbers between them."""

from dataclasses import dataclass, field
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmix.affine import AffineMap, Base, shift
from jaxmix.families.base import Update, mismatch
from jaxmix.operators import LowRank

__all__ = ["TinyLoRA"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class TinyLoRA(Update):
    """TinyLoRA: ``W' = W + B (Σᵢ vᵢ Pᵢ) A``.

    A and B are singular vectors of the base that it was trained on, with the roots of its singular
    values, and are in the file. An embedding (V, D) is ``E + B R A`` too.

    Strength s: ``W' = W + s·B (Σᵢ vᵢ Pᵢ) A``.

    Args:
        a: A (r, in), PEFT's ``tinylora_A``.
        b: B (out, r), PEFT's ``tinylora_B``.
        projections: P (u, r, r), PEFT's ``tinylora_P``.
        v: v (u,), a single array shared by all sites of a group, PEFT's ``tinylora_v``.
        number: Which of the model's adapted modules it is, in their order, which says which of
            PEFT's vectors it has; what `export` needs, not the map. None where it is not known.
        seed: the seed from which PEFT draws P; what `export` needs.
        transposed: Whether PyTorch stores the weight as (in, out); None if unknown.

    Raises:
        ShapeError: Raised by `compose` if the factors do not fit the weight.

    Example:
        >>> two = TinyLoRA(jnp.ones((1, 1)), jnp.ones((1, 1)), jnp.ones((2, 1, 1)), jnp.ones(2))
        >>> two.weight_map(Base(None, (1, 1)), jnp.ones(())).shift.dense().tolist()
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

    def weight_map(self, base: Base, strength: Float[Array, ""]) -> AffineMap:
        """``(I, I, s·B (Σᵢ vᵢ Pᵢ) A)``."""
        middle = jnp.einsum("u,ujk->jk", strength * self.v, self.projections)
        return shift(LowRank(self.b, middle @ self.a))

    def misfit(self, shape: tuple[int, int]) -> str | None:
        """Checks that B P A has the weight's sizes, and v the number of projections."""
        out_size, in_size = shape
        factors = {
            "tinylora_A": (self.a, ("r", in_size)),
            "tinylora_B": (self.b, (out_size, "r")),
            "tinylora_P": (self.projections, ("u", "r", "r")),
            "tinylora_v": (self.v, ("u",)),
        }
        return mismatch(factors, shape)

    def size(self) -> str:
        """How many numbers are trained, and its rank."""
        return f"{self.v.shape[0]} numbers at rank {self.a.shape[0]}"
