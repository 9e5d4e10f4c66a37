"""GraLoRA: a grid of tiles, each with its own low rank."""

from dataclasses import dataclass, field
from fractions import Fraction
from typing import ClassVar

from jaxtyping import Array, Float

from jaxmix.affine import AffineMap, Base, shift
from jaxmix.families.base import ExpectedShapes, Update, mismatch
from jaxmix.operators import LowRank, Tiles, add
from jaxmix.pytrees import register_dataclass

__all__ = ["GraLoRA"]


@register_dataclass
@dataclass(frozen=True, eq=False)
class GraLoRA(Update):
    """GraLoRA: ``W' = W + γ·(G + B_g A_g)``, where G is a grid of k × k tiles of rank r/k.

    The r ranks of each block are split into k parts; tile (m, n) of G is
    ``(A[n, :, part m] B[m, part n, :])ᵀ``. The hybrid form adds a low rank for the whole weight.

    Strength s: ``W' = W + s·γ·(G + B_g A_g)``.

    Args:
        a: A (k, in/k, r), PEFT's ``gralora_A``.
        b: B (k, r, out/k), PEFT's ``gralora_B``.
        scale: γ = alpha/(r + hybrid_r).
        a_general: A_g (hybrid_r, in), PEFT's ``gralora_A_general``; None if absent.
        b_general: B_g (out, hybrid_r), PEFT's ``gralora_B_general``; None if absent.
        transposed: Whether PyTorch stores the weight as (in, out); None if unknown.

    Raises:
        ShapeError: Raised by `compose` if the factors do not fit the weight.

    Example:
        >>> import jax.numpy as jnp
        >>> tiles = GraLoRA(jnp.ones((2, 1, 2)), jnp.ones((2, 2, 1)), 3.0)
        >>> tiles.weight_map(Base(None, (2, 2)), jnp.ones(())).shift.dense().tolist()
        [[3.0, 3.0], [3.0, 3.0]]

    Source: https://arxiv.org/abs/2505.20355; ``peft/tuners/gralora/layer.py``.
    """

    a: Float[Array, "k in_k r"]
    b: Float[Array, "k r out_k"]
    scale: Float[Array, ""] | float
    a_general: Float[Array, "h in"] | None = None
    b_general: Float[Array, "out h"] | None = None
    transposed: bool | None = field(default=False, metadata={"static": True})

    family: ClassVar[str] = "GraLoRA"
    trained: ClassVar[tuple[str, ...]] = ("a", "b", "a_general", "b_general")

    def weight_map(self, base: Base, strength: Float[Array, ""]) -> AffineMap:
        """``(I, I, sγ·(G + B_g A_g))``."""
        (k, inputs, rank), outputs = self.a.shape, self.b.shape[2]
        left = self.b.reshape(k, k, rank // k, outputs).transpose(0, 1, 3, 2)
        right = self.a.reshape(k, inputs, k, rank // k).transpose(2, 0, 3, 1)
        delta = Tiles(left, right)
        if self.a_general is not None and self.b_general is not None:
            delta = add(delta, LowRank(self.b_general, self.a_general))
        return shift(delta.scaled(strength * self.scale))

    def misfit(self, shape: tuple[int, int]) -> str | None:
        """Checks that the grid and the general low rank have the weight's sizes."""
        out_size, in_size = shape
        k = self.a.shape[0] if self.a.ndim else 0
        # A fraction never equals an axis, so a grid that does not divide the weight is reported.
        inputs, outputs = (Fraction(size, max(k, 1)) for size in (in_size, out_size))
        factors: ExpectedShapes = {
            "gralora_A": (self.a, (k, inputs, "r")),
            "gralora_B": (self.b, (k, "r", outputs)),
            "gralora_A_general": (self.a_general, ("h", in_size)),
            "gralora_B_general": (self.b_general, (out_size, "h")),
            "scale": (self.scale, ()),
        }
        if problem := mismatch(factors, shape):
            return problem
        if self.a.shape[2] % k:
            return f"gralora_A has rank {self.a.shape[2]}, expected a multiple of {k}, its blocks"
        return None

    def size(self) -> str:
        """The rank and the number of blocks."""
        hybrid = "" if self.a_general is None else f" + {self.a_general.shape[0]}"
        return f"rank {self.a.shape[2]}{hybrid} in {self.a.shape[0]} blocks"
