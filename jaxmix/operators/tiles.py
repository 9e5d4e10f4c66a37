"""A grid of low-rank tiles."""

import math
from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmix.operators.base import Operator, slice_indices
from jaxmix.operators.blocks import covering_blocks, rows_within
from jaxmix.operators.compound import Product
from jaxmix.operators.simple import Zero
from jaxmix.pytrees import register_dataclass

__all__ = ["Tiles"]


@register_dataclass
@dataclass(frozen=True, eq=False)
class Tiles(Operator):
    """A grid of low-rank tiles; tile (m, n) is ``B[m, n] A[m, n]``.

    Args:
        b: B (m, n, p, r).
        a: A (m, n, r, q); the matrix is (m·p, n·q).

    Example:
        >>> Tiles(jnp.ones((1, 2, 1, 3)), jnp.arange(6.0).reshape(1, 2, 3, 1)).dense().tolist()
        [[3.0, 12.0]]
    """

    b: Float[Array, "m n p r"]
    a: Float[Array, "m n r q"]

    @property
    def shape(self) -> tuple[int, int]:
        m, n, p, _ = self.b.shape
        return m * p, n * self.a.shape[3]

    @property
    def T(self) -> "Tiles":
        return Tiles(self.a.transpose(1, 0, 3, 2), self.b.transpose(1, 0, 3, 2))

    def dense(self) -> Array:
        return jnp.einsum("mnpr,mnrq->mpnq", self.b, self.a).reshape(self.shape)

    def scaled(self, factor: Array | float) -> "Tiles":
        if self.b.size < self.a.size:
            return Tiles(factor * self.b, self.a)
        return Tiles(self.b, factor * self.a)

    def __matmul__(self, x: Array) -> Array:
        parts = x.reshape(self.a.shape[1], self.a.shape[3], x.shape[1])
        inner = jnp.einsum("mnrq,nqc->mnrc", self.a, parts)
        return jnp.einsum("mnpr,mnrc->mpc", self.b, inner).reshape(self.shape[0], x.shape[1])

    def __rmatmul__(self, x: Array) -> Array:
        parts = x.reshape(x.shape[0], self.b.shape[0], self.b.shape[2])
        inner = jnp.einsum("cmp,mnpr->cmnr", parts, self.b)
        return jnp.einsum("cmnr,mnrq->cnq", inner, self.a).reshape(x.shape[0], self.shape[1])

    def rows(self, part: slice) -> Operator:
        kept, size = slice_indices(part, self.shape[0]), self.b.shape[2]
        if len(kept) == 0:
            return Zero(0, self.shape[1])
        first, last = covering_blocks(kept, size)
        strip, covered = (
            Tiles(self.b[first:last], self.a[first:last]),
            range(first * size, last * size),
        )
        if kept == covered:
            return strip
        return Product(rows_within(kept, covered), strip)

    def flops(self) -> int:
        return 2 * self.b.shape[3] * math.prod(self.shape)

    def matmul_flops(self, n: int) -> int:
        return 2 * (self.a.size + self.b.size) * n
