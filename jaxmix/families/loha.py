"""LoHa: the elementwise product of two low-rank matrices."""

import math
from dataclasses import dataclass, field
from fractions import Fraction
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmix.affine import AffineMap, Base, shift
from jaxmix.families.base import ExpectedShapes, Update, mismatch
from jaxmix.operators import Hadamard, LowRank
from jaxmix.pytrees import register_dataclass

__all__ = ["LoHa"]


@register_dataclass
@dataclass(frozen=True, eq=False)
class LoHa(Update):
    """LoHa: ``W' = W + γ·(B₁A₁) ⊙ (B₂A₂)``.

    An *effective* convolution has a core t ``(r, r, *k)`` for each product and stores B as (r, out)
    and A as (r, in). Each product is ``Σᵢⱼ B[i, o] t[i, j, k] A[j, n]``, which is again a low rank
    of ``Bᵀ`` and ``Σⱼ t[i, j, k] A[j, n]`` (r, in·k).

    Strength s: ``W' = W + s·γ·(B₁A₁) ⊙ (B₂A₂)``.

    Args:
        b1: B₁ (out, r), PEFT's ``hada_w1_a``; (r, out) with a core.
        a1: A₁ (r, in·k), PEFT's ``hada_w1_b``; (r, in) with a core.
        b2: B₂, with the shape of B₁, PEFT's ``hada_w2_a``.
        a2: A₂, with the shape of A₁, PEFT's ``hada_w2_b``.
        scale: γ = alpha/rank.
        t1: The core of the first product, PEFT's ``hada_t1`` ``(r, r, *k)``; None if absent.
        t2: The core of the second product, PEFT's ``hada_t2``.
        kernel: The convolution's spatial shape, () if there is none; see `for_export`.

    Raises:
        ShapeError: Raised by `compose` if the factors do not fit the weight.

    Example:
        >>> import jax.numpy as jnp
        >>> b, a = jnp.ones((2, 1)), 3 * jnp.ones((1, 2))
        >>> LoHa(b, a, b, a, 1.0).weight_map(Base(None, (2, 2)), jnp.ones(())).shift.dense()[0, 0]
        Array(9., dtype=float32)

    Source: https://arxiv.org/abs/2108.06098; ``peft/tuners/loha/layer.py``.
    """

    b1: Float[Array, "..."]
    a1: Float[Array, "..."]
    b2: Float[Array, "..."]
    a2: Float[Array, "..."]
    scale: Float[Array, ""] | float
    t1: Float[Array, "r r *k"] | None = None
    t2: Float[Array, "r r *k"] | None = None
    kernel: tuple[int, ...] = field(default=(), metadata={"static": True})

    family: ClassVar[str] = "LoHa"
    trained: ClassVar[tuple[str, ...]] = ("b1", "a1", "b2", "a2", "t1", "t2")
    for_export: ClassVar[tuple[str, ...]] = ("kernel",)

    def weight_map(self, base: Base, strength: Float[Array, ""]) -> AffineMap:
        """``(I, I, sγ·(B₁A₁) ⊙ (B₂A₂))``."""
        first = _low_rank(self.b1, self.a1, self.t1)
        delta = Hadamard(first, _low_rank(self.b2, self.a2, self.t2))
        return shift(delta.scaled(strength * self.scale))

    def misfit(self, shape: tuple[int, int]) -> str | None:
        """Checks that both products have the weight's sizes."""
        first = _expected("1", self.b1, self.a1, self.t1, shape)
        second = _expected("2", self.b2, self.a2, self.t2, shape)
        return mismatch({**first, **second, "scale": (self.scale, ())}, shape)

    def size(self) -> str:
        """The rank of each product."""
        return f"rank {self.b1.shape[1] if self.t1 is None else self.b1.shape[0]}"


def _expected(
    name: str, b: Array, a: Array, t: Array | None, shape: tuple[int, int]
) -> ExpectedShapes:
    """Returns the factors of one product by PEFT's names, with the shapes that fit."""
    (out_size, in_size), r = shape, "r" + name
    points = () if t is None else t.shape[2:]
    # A fraction never equals an axis, so a kernel that does not divide the weight is reported.
    channels = Fraction(in_size, max(math.prod(points), 1))
    return {
        f"hada_w{name}_a": (b, (out_size, r) if t is None else (r, out_size)),
        f"hada_w{name}_b": (a, (r, channels)),
        f"hada_t{name}": (t, (r, r, *points)),
    }


def _low_rank(b: Array, a: Array, t: Array | None) -> LowRank:
    """Returns one of the two products, multiplied with its core if it has one."""
    if t is None:
        return LowRank(b, a)
    inner = jnp.einsum("ij...,jn->in...", t, a)
    return LowRank(b.T, inner.reshape(inner.shape[0], -1))
