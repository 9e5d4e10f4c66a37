"""HRA: applies a chain of Householder reflections to the input."""

from dataclasses import dataclass, field
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxmix.affine import AffineMap, Base
from jaxmix.families.base import Update, mismatch
from jaxmix.operators import Identity, LowRank, Zero, add
from jaxmix.pytrees import register_dataclass

__all__ = ["HRA"]


@register_dataclass
@dataclass(frozen=True, eq=False)
class HRA(Update):
    """HRA: ``W' = W H₁ ⋯ Hᵣ`` with ``Hᵢ = I − 2 uᵢuᵢᵀ / ‖uᵢ‖²``.

    The product is ``I − U T Uᵀ`` for normalized columns of U, where ``T⁻¹`` is the upper triangle
    of ``UᵀU`` with half its diagonal. With `orthogonal` the columns are orthogonalized first, and
    the product is ``I − 2 QQᵀ`` with an orthonormal basis Q of their span.

    Strength s interpolates linearly, ``I − s·U T Uᵀ``. PEFT initializes pairs of equal reflections,
    whose product is the identity at every strength.

    Args:
        u: U (in, r), PEFT's ``hra_u``; a convolution's (in·k, r).
        orthogonal: Whether the columns of U are orthogonalized first, PEFT's ``apply_GS``.

    Raises:
        ShapeError: Raised by `compose` if U does not have the weight's inputs.

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
        removed = _orthogonal_product(wide) if self.orthogonal else _product(wide)
        removed = LowRank(removed.b.astype(u.dtype), removed.a.astype(u.dtype)).scaled(-strength)
        return AffineMap(Identity(out_size), add(Identity(in_size), removed), Zero(*base.shape))

    def misfit(self, shape: tuple[int, int]) -> str | None:
        """Checks that U has the weight's inputs and, if orthogonal, no more columns than these."""
        if problem := mismatch({"hra_u": (self.u, (shape[1], "r"))}, shape):
            return problem
        if self.orthogonal and self.u.shape[1] > shape[1]:
            return (
                f"hra_u has {self.u.shape[1]} columns to orthogonalize, expected at most {shape[1]}"
            )
        return None

    def size(self) -> str:
        """The number of reflections."""
        return f"{self.u.shape[1]} reflections"


def _product(u: Float[Array, "in r"]) -> LowRank:
    """Returns ``U Tᵀ Uᵀ`` of the transposed product. A column of zeros reflects nothing."""
    square = jnp.sum(u * u, axis=0, keepdims=True)
    is_nonzero = square > 0
    norms = jnp.sqrt(jnp.where(is_nonzero, square, jnp.ones_like(square)))
    u = jnp.where(is_nonzero, u / norms, jnp.zeros_like(u))
    gram = u.T @ u
    inverse = jnp.tril(gram, -1) + jnp.eye(len(gram), dtype=u.dtype) / 2
    return LowRank(u, jax.lax.linalg.triangular_solve(inverse, u.T, left_side=True, lower=True))


def _orthogonal_product(u: Float[Array, "in r"]) -> LowRank:
    """Returns ``2 QQᵀ``."""
    q, _ = jnp.linalg.qr(u)
    return LowRank(q, 2 * q.T)
