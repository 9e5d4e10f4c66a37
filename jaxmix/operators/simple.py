"""The basic operators: zero, identity, diagonal and dense."""

import math
from dataclasses import dataclass, field, replace

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxmix.operators.base import Operator, slice_indices, static
from jaxmix.operators.sparse import Sparse, selection
from jaxmix.pytrees import register_dataclass

__all__ = ["Dense", "Diagonal", "Identity", "Zero"]


@register_dataclass
@dataclass(frozen=True, eq=False)
class Zero(Operator):
    """The zero matrix, without a dtype of its own.

    Args:
        n_rows: The number of rows.
        n_cols: The number of columns.

    Example:
        >>> Zero(1, 2).dense().tolist()
        [[0.0, 0.0]]
    """

    n_rows: int = static()
    n_cols: int = static()

    @property
    def shape(self) -> tuple[int, int]:
        return self.n_rows, self.n_cols

    @property
    def T(self) -> "Zero":
        return Zero(self.n_cols, self.n_rows)

    def dense(self) -> Array:
        return jnp.broadcast_to(jnp.asarray(0.0), self.shape)

    def scaled(self, factor: Array | float) -> "Zero":
        return self

    def __matmul__(self, x: Array) -> Array:
        return jnp.zeros((self.n_rows, x.shape[1]), x.dtype)

    def __rmatmul__(self, x: Array) -> Array:
        return jnp.zeros((x.shape[0], self.n_cols), x.dtype)

    def rows(self, part: slice) -> "Zero":
        return Zero(len(slice_indices(part, self.n_rows)), self.n_cols)

    def flops(self) -> int:
        return 0

    def matmul_flops(self, n: int) -> int:
        return 0

    def added_to(self, x: Array) -> Array:
        return x

    def added_flops(self) -> int:
        return 0


@register_dataclass
@dataclass(frozen=True, eq=False)
class Identity(Operator):
    """The identity matrix, without a dtype of its own.

    Args:
        size: The number of rows, and of columns.

    Example:
        >>> Identity(2).dense().tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """

    size: int = static()

    @property
    def shape(self) -> tuple[int, int]:
        return self.size, self.size

    @property
    def T(self) -> "Identity":
        return self

    def dense(self) -> Array:
        return jnp.where(jnp.eye(self.size, dtype=bool), 1.0, 0.0)

    def scaled(self, factor: Array | float) -> "Diagonal":
        return Diagonal(jnp.broadcast_to(jnp.asarray(factor), (self.size,)))

    def __matmul__(self, x: Array) -> Array:
        return x

    def __rmatmul__(self, x: Array) -> Array:
        return x

    def rows(self, part: slice) -> Sparse:
        return selection(slice_indices(part, self.size), self.size)

    def flops(self) -> int:
        return 0

    def matmul_flops(self, n: int) -> int:
        return 0


@register_dataclass
@dataclass(frozen=True, eq=False)
class Diagonal(Operator):
    """The diagonal matrix ``diag(d)``.

    Args:
        d: The diagonal (n,).
        gates: Whether a zero on the diagonal gives zero even for NaN and infinity. Updates that
            replace rows set it, so that the result does not depend on the replaced values.

    Example:
        >>> Diagonal(jnp.array([2.0, 3.0])).dense().tolist()
        [[2.0, 0.0], [0.0, 3.0]]
    """

    d: Float[Array, " n"]
    gates: bool = field(default=False, metadata={"static": True})

    @property
    def shape(self) -> tuple[int, int]:
        return self.d.shape[0], self.d.shape[0]

    @property
    def T(self) -> "Diagonal":
        return self

    def dense(self) -> Array:
        return jnp.diag(self.d)

    def scaled(self, factor: Array | float) -> "Diagonal":
        return replace(self, d=factor * self.d)

    def __matmul__(self, x: Array) -> Array:
        d = self.d[:, None]
        return _gated(x, d) if self.gates else d * x

    def __rmatmul__(self, x: Array) -> Array:
        d = self.d[None, :]
        return _gated(x, d) if self.gates else x * d

    def rows(self, part: slice) -> Sparse:
        kept = slice_indices(part, self.d.shape[0])
        positions = np.stack([np.arange(len(kept)), np.asarray(kept, int)]).astype(np.int32)
        return Sparse(self.d[part], jnp.asarray(positions), len(kept), self.d.shape[0])

    def flops(self) -> int:
        return 0

    def matmul_flops(self, n: int) -> int:
        return self.d.shape[0] * n


@register_dataclass
@dataclass(frozen=True, eq=False)
class Dense(Operator):
    """A matrix without structure.

    Args:
        matrix: The entries (rows, cols).

    Example:
        >>> Dense(jnp.ones((1, 2))).T.shape
        (2, 1)
    """

    matrix: Float[Array, "rows cols"]

    @property
    def shape(self) -> tuple[int, int]:
        rows, cols = self.matrix.shape
        return rows, cols

    @property
    def T(self) -> "Dense":
        return Dense(self.matrix.T)

    def dense(self) -> Array:
        return self.matrix

    def scaled(self, factor: Array | float) -> "Dense":
        return Dense(factor * self.matrix)

    def __matmul__(self, x: Array) -> Array:
        return self.matrix @ x

    def __rmatmul__(self, x: Array) -> Array:
        return x @ self.matrix

    def take_rows(self, at: Array) -> Array:
        return jnp.asarray(self.matrix)[at]

    def rows(self, part: slice) -> "Dense":
        return Dense(self.matrix[part])

    def flops(self) -> int:
        return 0

    def matmul_flops(self, n: int) -> int:
        return 2 * math.prod(self.shape) * n


def _gated(x: Array, d: Array) -> Array:
    """Returns ``d · x`` with zero where d is zero, even if x is not finite there.

    It still multiplies with d, which keeps the gradient with respect to d.
    """
    x = x * jnp.ones_like(d)  # gives x the shape and the sharding of the result
    return d * jnp.where((d == 0) & ~jnp.isfinite(x), jnp.zeros_like(x), x)
