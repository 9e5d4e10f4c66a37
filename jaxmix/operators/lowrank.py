"""Low-rank matrices, and the elementwise product of two of them."""

import math
from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmix.operators.base import Operator
from jaxmix.pytrees import register_dataclass

__all__ = ["KHATRI_RAO_RANK", "Hadamard", "LowRank"]

# A Hadamard product of ranks r₁ and r₂ is used as one low rank r₁r₂ (see `Hadamard.low_rank`) up to
# this rank: it then joins the other low-rank terms. On two CPU cores that was cheaper than a pass
# of its own at 16 and more expensive at 64; in a loop over rows both took the same time at 16.
# Accelerators were not measured.
KHATRI_RAO_RANK = 36


@register_dataclass
@dataclass(frozen=True, eq=False)
class LowRank(Operator):
    """A low-rank matrix ``B A``.

    Args:
        b: B (rows, r).
        a: A (r, cols).

    Example:
        >>> import jax.numpy as jnp
        >>> LowRank(jnp.ones((1, 2)), jnp.ones((2, 3))).dense().tolist()
        [[2.0, 2.0, 2.0]]
    """

    b: Float[Array, "rows r"]
    a: Float[Array, "r cols"]

    @property
    def rank(self) -> int:
        """The inner dimension r, an upper bound of the matrix's rank."""
        return self.a.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        return self.b.shape[0], self.a.shape[1]

    @property
    def T(self) -> "LowRank":
        return LowRank(self.a.T, self.b.T)

    def dense(self) -> Array:
        return self.b @ self.a

    def scaled(self, factor: Array | float) -> "LowRank":
        if self.b.size < self.a.size:
            return LowRank(factor * self.b, self.a)
        return LowRank(self.b, factor * self.a)

    def __matmul__(self, x: Array) -> Array:
        return self.b @ (self.a @ x)

    def __rmatmul__(self, x: Array) -> Array:
        return (x @ self.b) @ self.a

    def take_rows(self, at: Array) -> Array:
        return jnp.asarray(self.b)[at] @ self.a

    def rows(self, part: slice) -> "LowRank":
        return LowRank(self.b[part], self.a)

    def flops(self) -> int:
        return 2 * self.rank * math.prod(self.shape)

    def matmul_flops(self, n: int) -> int:
        return 2 * self.rank * sum(self.shape) * n


@register_dataclass
@dataclass(frozen=True, eq=False)
class Hadamard(Operator):
    """``(B₁A₁) ⊙ (B₂A₂)``, the elementwise product of two low-rank matrices.

    Args:
        left: ``B₁A₁`` (rows, cols), of rank r₁.
        right: ``B₂A₂`` (rows, cols), of rank r₂.

    Example:
        >>> import jax.numpy as jnp
        >>> six = LowRank(jnp.ones((1, 2)), jnp.full((2, 1), 3.0))  # the matrix [[6.0]]
        >>> Hadamard(six, six).dense().tolist()
        [[36.0]]

    Source: https://arxiv.org/abs/2108.06098.
    """

    left: LowRank
    right: LowRank

    @property
    def shape(self) -> tuple[int, int]:
        return self.left.shape

    @property
    def T(self) -> "Hadamard":
        return Hadamard(self.left.T, self.right.T)

    def dense(self) -> Array:
        return self.left.dense() * self.right.dense()

    def low_rank(self) -> LowRank:
        """Returns the same matrix as one low rank r₁r₂, using Khatri-Rao products.

        ``(B₁A₁) ⊙ (B₂A₂) = (B₁ ∗ B₂)(A₁ ∗ A₂)``, where ``∗`` takes the Kronecker product of
        corresponding rows (of B) or columns (of A).
        """
        (rows, cols), rank = self.shape, self.left.rank * self.right.rank
        b = self.left.b[:, :, None] * self.right.b[:, None, :]
        a = self.left.a[:, None, :] * self.right.a[None, :, :]
        return LowRank(b.reshape(rows, rank), a.reshape(rank, cols))

    def scaled(self, factor: Array | float) -> "Hadamard":
        return Hadamard(self.left.scaled(factor), self.right)

    def __matmul__(self, x: Array) -> Array:
        n = x.shape[1]
        if self._thin_flops(n) <= self._wide_flops(n):
            return self.low_rank() @ x
        return self.dense() @ x

    def __rmatmul__(self, x: Array) -> Array:
        n = x.shape[0]
        if self._thin_flops(n) <= self._wide_flops(n):
            return x @ self.low_rank()
        return x @ self.dense()

    def take_rows(self, at: Array) -> Array:
        return self.left.take_rows(at) * self.right.take_rows(at)

    def rows(self, part: slice) -> "Hadamard":
        return Hadamard(self.left.rows(part), self.right.rows(part))

    def flops(self) -> int:
        return self.left.flops() + self.right.flops() + math.prod(self.shape)

    def matmul_flops(self, n: int) -> int:
        return min(self._thin_flops(n), self._wide_flops(n))

    def _thin_flops(self, n: int) -> int:
        """The cost of ``M x`` with Khatri-Rao factors: making them, and two thin products."""
        return self.left.rank * self.right.rank * sum(self.shape) * (1 + 2 * n)

    def _wide_flops(self, n: int) -> int:
        """The cost of ``M x`` with the dense matrix."""
        return self.flops() + 2 * math.prod(self.shape) * n
