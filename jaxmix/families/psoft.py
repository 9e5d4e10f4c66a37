"""PSOFT: a rotation within the weight's principal subspace."""

from dataclasses import dataclass, field
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmix.affine import AffineMap, Base, shift
from jaxmix.families.base import Update, mismatch
from jaxmix.operators import LowRank
from jaxmix.operators.rotations import cayley, series, shrunk, skew, terms_problem

__all__ = ["PSOFT"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class PSOFT(Update):
    """PSOFT: ``W' = W + γ·B (R − I) A``, with ``γ·B A`` the best rank r of the base's weight.

    R is ``diag(m) C diag(n)``. C is free, or of the skew matrix Q whose upper triangle it is: the
    rotation ``(I + Q)(I − Q)⁻¹``, or as many terms of its series as `terms` says (see `OFT`).

    A and B come out of the base by an SVD when PEFT loads the adapter. Its file does not hold them,
    but this update does.

    Strength s: ``W' = W + s·γ·B (R − I) A``.

    Args:
        a: A (r, in).
        b: B (out, r).
        rotation: Q's upper triangle (r(r − 1)/2,), PEFT's ``psoft_R.weight``; or C itself (r, r).
        scale: γ = alpha/rank.
        outputs: m (r,), PEFT's ``psoft_R.vector_b``; None for ones.
        inputs: n (r,), PEFT's ``psoft_R.vector_a``; None for ones.
        terms: how many terms the series has; None for the exact rotation.
        eps: the Frobenius norm to which Q is shrunk where it is beyond; None for no bound.

    Raises:
        ShapeError: by `compose`, where the factors do not fit the weight or each other.

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
        turn = self._turn()
        off = turn - jnp.eye(len(turn), dtype=turn.dtype)
        return shift(LowRank(jnp.asarray(self.b) @ (strength * self.scale * off), self.a))

    def _turn(self) -> Float[Array, "r r"]:
        """R."""
        free = jnp.asarray(self.rotation)
        if free.ndim == 1:
            q = skew(free[None])
            q = q if self.eps is None else shrunk(q, jnp.asarray(self.eps, q.dtype))
            # The exact rotation is the one whose inverse OFT takes.
            free = (cayley(-q) if self.terms is None else series(q, self.terms))[0]
        if self.outputs is not None:
            free = jnp.asarray(self.outputs)[:, None] * free
        return free if self.inputs is None else free * jnp.asarray(self.inputs)[None]

    def misfit(self, shape: tuple[int, int]) -> str | None:
        """Whether all have one rank, and the weight's sizes."""
        (out_size, in_size), rank = shape, self.a.shape[0] if self.a.ndim else 0
        numbers: tuple[int | str, ...] = (rank, rank)
        if self.rotation.ndim != 2:
            numbers = (rank * (rank - 1) // 2,)
        factors = {
            "A": (self.a, ("r", in_size)),
            "B": (self.b, (out_size, "r")),
            "psoft_R.weight": (self.rotation, numbers),
            "psoft_R.vector_b": (self.outputs, ("r",)),
            "psoft_R.vector_a": (self.inputs, ("r",)),
            "scale": (self.scale, ()),
            "eps": (self.eps, ()),
        }
        return terms_problem(self.terms) or mismatch(factors, shape)

    def size(self) -> str:
        """Its rank."""
        return f"rank {self.a.shape[0]}"
