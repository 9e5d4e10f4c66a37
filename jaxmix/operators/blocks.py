"""Operators built from repeated blocks: block-diagonal and Kronecker."""

import math
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from jaxmix.operators.base import Operator, slice_indices, static
from jaxmix.operators.compound import Product
from jaxmix.operators.simple import Zero
from jaxmix.operators.sparse import selection
from jaxmix.pytrees import register_dataclass

__all__ = ["BlockDiagonal", "Kronecker", "covering_blocks", "rows_within"]


@register_dataclass
@dataclass(frozen=True, eq=False)
class BlockDiagonal(Operator):
    """``diag(M₁ … Mₖ)`` with square blocks of one size; all k blocks are repeated ``copies`` times.

    Args:
        blocks: M₁ … Mₖ (k, b, b).
        copies: How often the k blocks are repeated; the matrix has copies·k·b rows and columns.

    Example:
        >>> BlockDiagonal(jnp.array([[[2.0]], [[3.0]]]), 2).dense().diagonal().tolist()
        [2.0, 3.0, 2.0, 3.0]
    """

    blocks: Float[Array, "k b b"]
    copies: int = static()

    @property
    def block_size(self) -> int:
        """The number of rows, and of columns, of each block: b."""
        return self.blocks.shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        n = self.blocks.shape[0] * self.block_size * self.copies
        return n, n

    @property
    def T(self) -> "BlockDiagonal":
        return BlockDiagonal(jnp.swapaxes(self.blocks, 1, 2), self.copies)

    def all_blocks(self) -> Float[Array, "kc b b"]:
        """Returns every block, with the copies written out."""
        return jnp.tile(self.blocks, (self.copies, 1, 1)) if self.copies > 1 else self.blocks

    def coarse(self, size: int) -> "BlockDiagonal":
        """Returns the same matrix as larger blocks.

        Args:
            size: The new block size, a multiple of b and a divisor of the matrix's size.
        """
        b = self.block_size
        if size == b:
            return self
        return BlockDiagonal(_spread(self.all_blocks().reshape(-1, size, b)), 1)

    def dense(self) -> Array:
        return _spread(self.all_blocks().reshape(1, self.shape[0], self.block_size))[0]

    def scaled(self, factor: Array | float) -> "BlockDiagonal":
        return BlockDiagonal(factor * self.blocks, self.copies)

    def __matmul__(self, x: Array) -> Array:
        k, b, _ = self.blocks.shape
        # An einsum may swap its operands, and XLA's CPU compiler is slower with the other order.
        return (self.blocks @ x.reshape(self.copies, k, b, x.shape[1])).reshape(x.shape)

    def __rmatmul__(self, x: Array) -> Array:
        k, b, _ = self.blocks.shape
        dtype = jnp.result_type(x, self.blocks)
        # The copies keep their axis: if it joined the tokens', XLA would gather a sharded x.
        parts = x.reshape(x.shape[0], self.copies, k, b).astype(dtype)
        wide = lax.dot_general(parts, self.blocks.astype(dtype), (((3,), (1,)), ((2,), (0,))))
        return wide.transpose(1, 2, 0, 3).reshape(x.shape)

    def rows(self, part: slice) -> Operator:
        n, b = self.shape[0], self.block_size
        kept = slice_indices(part, n)
        if len(kept) == 0:
            return Zero(0, n)
        first, last = covering_blocks(kept, b)
        strip = BlockDiagonal(self.all_blocks()[first:last], 1)
        columns = range(first * b, last * b)
        whole = strip if len(columns) == n else Product(strip, selection(columns, n))
        return whole if kept == columns else Product(rows_within(kept, columns), whole)

    def flops(self) -> int:
        return 0

    def matmul_flops(self, n: int) -> int:
        return 2 * self.shape[0] * self.block_size * n


@register_dataclass
@dataclass(frozen=True, eq=False)
class Kronecker(Operator):
    """``X ⊗ Y``, whose entry ``[i·k + p, j·n + q]`` is ``X[i, j] · Y[p, q]``.

    Args:
        x: X (l, m).
        y: Y (k, n); the matrix is (l·k, m·n).

    Example:
        >>> Kronecker(jnp.array([[2.0, 3.0]]), jnp.ones((1, 2))).dense().tolist()
        [[2.0, 2.0, 3.0, 3.0]]

    Source: https://arxiv.org/abs/2309.14859.
    """

    x: Float[Array, "l m"]
    y: Float[Array, "k n"]

    @property
    def shape(self) -> tuple[int, int]:
        return self.x.shape[0] * self.y.shape[0], self.x.shape[1] * self.y.shape[1]

    @property
    def T(self) -> "Kronecker":
        return Kronecker(self.x.T, self.y.T)

    def dense(self) -> Array:
        spread = self.x[:, None, :, None] * self.y[None, :, None, :]
        return spread.reshape(self.shape)

    def scaled(self, factor: Array | float) -> "Kronecker":
        if self.x.size < self.y.size:
            return Kronecker(factor * self.x, self.y)
        return Kronecker(self.x, factor * self.y)

    def __matmul__(self, x: Array) -> Array:
        (_, m), (_, n) = self.x.shape, self.y.shape
        parts = x.reshape(m, n, x.shape[1])
        if self._y_first() <= self._x_first():
            wide = jnp.einsum("lm,mkc->lkc", self.x, jnp.einsum("kn,mnc->mkc", self.y, parts))
        else:
            wide = jnp.einsum("kn,lnc->lkc", self.y, jnp.einsum("lm,mnc->lnc", self.x, parts))
        return wide.reshape(self.shape[0], x.shape[1])

    def __rmatmul__(self, x: Array) -> Array:
        (rows, _), (k, _) = self.x.shape, self.y.shape
        parts = x.reshape(x.shape[0], rows, k)
        if self._y_first() <= self._x_first():
            wide = jnp.einsum("clk,lm->cmk", parts, self.x) @ self.y
        else:
            wide = jnp.einsum("cln,lm->cmn", parts @ self.y, self.x)
        return wide.reshape(x.shape[0], self.shape[1])

    def take_rows(self, at: Array) -> Array:
        k = self.y.shape[0]
        x, y = jnp.asarray(self.x)[at // k], jnp.asarray(self.y)[at % k]
        return (x[:, :, None] * y[:, None, :]).reshape(at.shape[0], self.shape[1])

    def rows(self, part: slice) -> Operator:
        k = self.y.shape[0]
        kept = slice_indices(part, self.shape[0])
        if len(kept) == 0:
            return Zero(0, self.shape[1])
        first, last = covering_blocks(kept, k)
        covered = range(first * k, last * k)
        strip = Kronecker(self.x[first:last], self.y)
        if kept == covered:
            return strip
        if last - first == 1:
            inner = jnp.asarray([i - covered.start for i in kept], jnp.int32)
            return Kronecker(strip.x, self.y[inner])
        return Product(rows_within(kept, covered), strip)

    def flops(self) -> int:
        return math.prod(self.shape)

    def matmul_flops(self, n: int) -> int:
        return min(self._y_first(), self._x_first()) * n

    def _y_first(self) -> int:
        """The cost of ``M x`` per column if Y is multiplied first."""
        (rows, m), (k, n) = self.x.shape, self.y.shape
        return 2 * k * m * (n + rows)

    def _x_first(self) -> int:
        """The cost of ``M x`` per column if X is multiplied first."""
        (rows, m), (k, n) = self.x.shape, self.y.shape
        return 2 * rows * n * (m + k)


def _spread(stacked: Float[Array, "m n b"]) -> Float[Array, "m n n"]:
    """Places blocks that are stacked by rows along the diagonals of matrices of zeros."""
    _, size, b = stacked.shape
    block = jnp.arange(size, dtype=np.int32) // b
    repeated = jnp.tile(stacked, (1, 1, size // b))
    return jnp.where((block[:, None] == block[None])[None], repeated, 0)


def covering_blocks(kept: range, size: int) -> tuple[int, int]:
    """Returns the range of blocks that the rows touch, as (first, last + 1)."""
    return min(kept) // size, max(kept) // size + 1


def rows_within(kept: range, covered: range) -> Operator:
    """Returns the operator that selects rows from the contiguous rows that cover them."""
    start = covered.start
    return selection(range(kept.start - start, kept.stop - start, kept.step), len(covered))
