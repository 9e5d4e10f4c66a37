"""PSOFT: a rotation within the principal subspace of the base's weight."""

from dataclasses import dataclass, field
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmix.affine import AffineMap, Base, shift
from jaxmix.families.base import Update, mismatch
from jaxmix.operators import LowRank
from jaxmix.operators.rotations import (
    cayley,
    cayley_neumann,
    clip_norm,
    skew_symmetric,
    terms_misfit,
)
from jaxmix.pytrees import register_dataclass

__all__ = ["PSOFT"]


@register_dataclass
@dataclass(frozen=True, eq=False)
class PSOFT(Update):
    """PSOFT: ``W' = W + γ·B (R − I) A``, where ``γ·B A`` is the base's SVD truncated to rank r.

    ``R = diag(m) C diag(n)``. C is trained freely, or it is a rotation given by the upper triangle
    of a skew-symmetric matrix Q: ``(I + Q)(I − Q)⁻¹``, or `terms` terms of its series (see `OFT`).

    PEFT computes A and B with an SVD of the base when it loads the adapter and does not save them.
    This update holds them.

    Strength s: ``W' = W + s·γ·B (R − I) A``.

    Args:
        a: A (r, in).
        b: B (out, r).
        rotation: Q's upper triangle (r(r − 1)/2,), PEFT's ``psoft_R.weight``; or C itself (r, r).
        scale: γ = alpha/rank.
        outputs: m (r,), PEFT's ``psoft_R.vector_b``; None for ones.
        inputs: n (r,), PEFT's ``psoft_R.vector_a``; None for ones.
        terms: The number of terms of the series; None for the exact rotation.
        eps: The Frobenius norm to which Q is clipped; None for no bound.

    Raises:
        ShapeError: Raised by `compose` if the factors do not fit the weight or each other.

    Example:
        >>> double = PSOFT(jnp.ones((1, 2)), jnp.ones((1, 1)), jnp.full((1, 1), 2.0), 1.0)
        >>> double.weight_map(Base(None, (1, 2)), jnp.ones(()))(jnp.ones((1, 2))).tolist()
        [[2.0, 2.0]]

    Source: https://openreview.net/forum?id=FSHrinMArK; ``peft/tuners/psoft/layer.py``.
    """

    a: Float[Array, "r in"]
    b: Float[Array, "out r"]
    rotation: Float[Array, "..."]
    scale: Float[Array, ""] | float
    outputs: Float[Array, " r"] | None = None
    inputs: Float[Array, " r"] | None = None
    terms: int | None = field(default=None, metadata={"static": True})
    eps: Float[Array, ""] | float | None = None

    family: ClassVar[str] = "PSOFT"
    trained: ClassVar[tuple[str, ...]] = ("rotation", "outputs", "inputs")

    def weight_map(self, base: Base, strength: Float[Array, ""]) -> AffineMap:
        """``(I, I, sγ·B (R − I) A)``."""
        r = self._r()
        change = r - jnp.eye(len(r), dtype=r.dtype)
        return shift(LowRank(jnp.asarray(self.b) @ (strength * self.scale * change), self.a))

    def _r(self) -> Float[Array, "r r"]:
        """Returns R."""
        r = jnp.asarray(self.rotation)
        if r.ndim == 1:
            q = skew_symmetric(r[None])
            q = q if self.eps is None else clip_norm(q, jnp.asarray(self.eps, q.dtype))
            # OFT's exact rotation is the inverse of this one, hence the sign of Q.
            r = (cayley(-q) if self.terms is None else cayley_neumann(q, self.terms))[0]
        if self.outputs is not None:
            r = jnp.asarray(self.outputs)[:, None] * r
        return r if self.inputs is None else r * jnp.asarray(self.inputs)[None]

    def misfit(self, shape: tuple[int, int]) -> str | None:
        """Checks that all factors have one rank and the weight's sizes."""
        (out_size, in_size), rank = shape, self.a.shape[0] if self.a.ndim else 0
        expected: tuple[int | str, ...] = (rank, rank)
        if self.rotation.ndim != 2:
            expected = (rank * (rank - 1) // 2,)
        factors = {
            "A": (self.a, ("r", in_size)),
            "B": (self.b, (out_size, "r")),
            "psoft_R.weight": (self.rotation, expected),
            "psoft_R.vector_b": (self.outputs, ("r",)),
            "psoft_R.vector_a": (self.inputs, ("r",)),
            "scale": (self.scale, ()),
            "eps": (self.eps, ()),
        }
        return terms_misfit(self.terms) or mismatch(factors, shape)

    def size(self) -> str:
        """The rank."""
        return f"rank {self.a.shape[0]}"
