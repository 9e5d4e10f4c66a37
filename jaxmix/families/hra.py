"""HRA: the input goes through a chain of Householder reflections."""

from dataclasses import dataclass, field
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxmix.affine import AffineMap, Base
from jaxmix.families.base import Update, mismatch
from jaxmix.operators import Identity, LowRank, Zero, add

__all__ = ["HRA"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class HRA(Update):
    """HRA: ``W' = W H₁ ⋯ Hᵣ`` with ``Hᵢ = I − 2 uᵢuᵢᵀ / ‖uᵢ‖²``.

    The product is ``I − U T Uᵀ`` for the normed U, with ``T⁻¹`` the upper triangle of ``UᵀU``, its
    diagonal halved. With `orthogonal` the u are made orthogonal one after the other, and the
    product is ``I − 2 QQᵀ``, with Q an orthonormal basis of their span.

    Strength s interpolates linearly, ``I − s·U T Uᵀ``: PEFT begins with pairs of equal reflections,
    whose product is the identity, and so it then is at every strength.

    Args:
        u: U (in, r), PEFT's ``hra_u``; a convolution's (in·k, r).
        orthogonal: Whether the u are made orthogonal first, PEFT's ``apply_GS``.

    Raises:
        ShapeError: Raised by `compose` if U has not the weight's inputs.

    Example:
        >>> mirror = HRA(jnp.array([[3.0], [0.0]])).weight_map(Base(None, (1, 2)), jnp.ones(()))
        >>> mirror(jnp.array([[1.0, 2.0]])).tolist()
        [[-1.0, 2.0]]

    Source: https://arxiv.org/abs/2405.17484; ``peft/tuners/hra/layer.py``.
    """

    u: Float[Array, "in r"]
    orthogonal: bool = field(default=False, metadata={"static": True})

    family: ClassVar[str] = "HRA"
    trained: ClassVar[tuple[str, ...]] = ("u",)

    def weight_map(self, base: Base, strength: Float[Array, ""]) -> AffineMap:
        """``(I, I − s·U Tᵀ Uᵀ, 0)``."""
        out_size, in_size = base.shape
        u = jnp.asarray(self.u)
        # LAPACK needs at least float32.
        wide = u.astype(np.promote_types(u.dtype, np.float32))
        low = _basis(wide) if self.orthogonal else _chain(wide)
        off = LowRank(low.b.astype(u.dtype), low.a.astype(u.dtype)).scaled(-strength)
        return AffineMap(Identity(out_size), add(Identity(in_size), off), Zero(*base.shape))

    def misfit(self, shape: tuple[int, int]) -> str | None:
        """Checks that U has the weight's inputs, and no more columns than these where they need be."""
        if problem := mismatch({"hra_u": (self.u, (shape[1], "r"))}, shape):
            return problem
        if self.orthogonal and self.u.shape[1] > shape[1]:
            return f"hra_u has {self.u.shape[1]} columns to make orthogonal, expected {shape[1]}"
        return None

    def size(self) -> str:
        """How many reflections."""
        return f"{self.u.shape[1]} reflections"


def _chain(u: Float[Array, "in r"]) -> LowRank:
    """``U Tᵀ Uᵀ``, of the transposed product. A u of length zero reflects nothing."""
    square = jnp.sum(u * u, axis=0, keepdims=True)
    is_nonzero = square > 0
    length = jnp.sqrt(jnp.where(is_nonzero, square, jnp.ones_like(square)))
    u = jnp.where(is_nonzero, u / length, jnp.zeros_like(u))
    gram = u.T @ u
    inverse = jnp.tril(gram, -1) + jnp.eye(len(gram), dtype=u.dtype) / 2
    return LowRank(u, jax.lax.linalg.triangular_solve(inverse, u.T, left_side=True, lower=True))


def _basis(u: Float[Array, "in r"]) -> LowRank:
    """``2 QQᵀ``."""
    q, _ = jnp.linalg.qr(u)
    return LowRank(q, 2 * q.T)
