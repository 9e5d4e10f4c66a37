"""DEFT: removes a subspace of the outputs and adds a trained matrix within it."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxmix.affine import AffineMap, Base
from jaxmix.families.base import Update, mismatch
from jaxmix.operators import Dense, Identity, LowRank, Operator, Zero, add
from jaxmix.pytrees import register_dataclass

__all__ = ["DEFT"]


@register_dataclass
@dataclass(frozen=True, eq=False)
class DEFT(Update):
    """DEFT: ``W' = (I − Q Kᵀ) W + γ·Q N``. Without N it is PaRa.

    Q and K come from P (out, r). With ``qr`` both are an orthonormal basis of its columns; with
    ``relu`` they are P and its positive part. The base's bias b₀ is unchanged, but the subspace is
    also removed from what other updates added to it: ``b' = b₀ + (I − Q Kᵀ)(b − b₀)``. PEFT
    computes all of this in float32.

    Strength s: ``W' = (I − s·Q Kᵀ) W + s·γ·Q N``.

    Args:
        p: P (out, r), PEFT's ``deft_P``.
        injected: N (r, in), PEFT's ``deft_R``; None for PaRa.
        scale: γ = alpha/rank, or 1.
        method: How Q and K are computed from P, PEFT's ``decomposition_method``.
        transposed: Whether PyTorch stores the weight as (in, out); None if unknown.

    Raises:
        ShapeError: Raised by `compose` if the factors do not fit the weight.

    Example:
        >>> update = DEFT(jnp.array([[1.0], [0.0]]), jnp.array([[5.0]]))
        >>> update.weight_map(Base(None, (2, 1)), jnp.ones(()))(jnp.array([[2.0], [3.0]])).tolist()
        [[5.0], [3.0]]

    Source: ``peft/tuners/deft/layer.py``; PaRa: https://arxiv.org/abs/2407.15849.
    """

    p: Float[Array, "out r"]
    injected: Float[Array, "r in"] | None = None
    scale: Float[Array, ""] | float = 1.0
    method: Literal["relu", "qr"] = field(default="relu", metadata={"static": True})
    transposed: bool | None = field(default=False, metadata={"static": True})

    family: ClassVar[str] = "DEFT"
    trained: ClassVar[tuple[str, ...]] = ("p", "injected")

    @property
    def reads_base(self) -> bool:
        """Always: the bias map reads the base's bias."""
        return True

    def weight_map(self, base: Base, strength: Float[Array, ""]) -> AffineMap:
        """``(I − s·Q Kᵀ, I, sγ·Q N)``."""
        q, _ = self._bases()
        added: Operator = Zero(*base.shape)
        if self.injected is not None:
            added = LowRank(strength * self.scale * q, jnp.asarray(self.injected))
        return AffineMap(self._projection(strength), Identity(base.shape[1]), added)

    def bias_map(self, base: Base, strength: Float[Array, ""]) -> AffineMap:
        """``(I − s·Q Kᵀ, 1, s·Q Kᵀ b₀)``."""
        q, k = self._bases()
        kept = Dense(strength * (q @ (k.T @ base.read("bias"))))
        return AffineMap(self._projection(strength), Identity(1), kept)

    def _projection(self, strength: Float[Array, ""]) -> Operator:
        """``I − s·Q Kᵀ``."""
        q, k = self._bases()
        return add(Identity(len(q)), LowRank(-strength * q, k.T))

    def _bases(self) -> tuple[Array, Array]:
        """Q and K."""
        p = jnp.asarray(self.p)
        if self.method == "relu":
            return p, jax.nn.relu(p)
        # LAPACK needs at least float32.
        q = jnp.linalg.qr(p.astype(np.promote_types(p.dtype, np.float32)))[0].astype(p.dtype)
        return q, q

    def misfit(self, shape: tuple[int, int]) -> str | None:
        """Checks that P and N have the weight's sizes."""
        out_size, in_size = shape
        factors = {
            "deft_P": (self.p, (out_size, "r")),
            "deft_R": (self.injected, ("r", in_size)),
            "scale": (self.scale, ()),
        }
        if problem := mismatch(factors, shape):
            return problem
        if self.method == "qr" and self.p.shape[1] > out_size:
            columns = self.p.shape[1]
            return f"deft_P has {columns} columns to orthogonalize, expected at most {out_size}"
        return None

    def size(self) -> str:
        """The rank, and whether it is PaRa."""
        return f"rank {self.p.shape[1]}" + (" PaRa" if self.injected is None else "")
