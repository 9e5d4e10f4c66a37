"""Low-rank matrices stacked along a leading axis, one per expert."""

import math
from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmix.operators.base import Operator, slice_indices, static
from jaxmix.operators.compound import Product
from jaxmix.operators.simple import Zero
from jaxmix.operators.sparse import selection
from jaxmix.pytrees import register_dataclass

__all__ = ["StackedLowRank"]


@register_dataclass
@dataclass(frozen=True, eq=False)
class StackedLowRank(Operator):
    """The matrix (experts, p·q) whose row e is the flattened ``BₑAₑ``.

    A leaf of experts (experts, p, q) is treated as the matrix (experts, p·q), just as a convolution
    (out, in, *k) is treated as (out, in·k).

    Args:
        b: B₁ … (experts, p, r).
        a: A₁ … (experts, r, q).
        is_transposed: Whether this is the transpose (p·q, experts).

    Example:
        >>> two = StackedLowRank(jnp.ones((2, 1, 1)), jnp.array([[[1.0, 2.0]], [[3.0, 4.0]]]))
        >>> two.dense().tolist()
        [[1.0, 2.0], [3.0, 4.0]]

    Source: ``peft/tuners/lora/layer.py`` (``ParamWrapper``).
    """

    b: Float[Array, "experts p r"]
    a: Float[Array, "experts r q"]
    is_transposed: bool = static(False)

    @property
    def shape(self) -> tuple[int, int]:
        experts, wide = self.b.shape[0], self.b.shape[1] * self.a.shape[2]
        return (wide, experts) if self.is_transposed else (experts, wide)

    @property
    def T(self) -> "StackedLowRank":
        return StackedLowRank(self.b, self.a, not self.is_transposed)

    def dense(self) -> Array:
        (experts, p, _), (*_, q) = self.b.shape, self.a.shape
        rows = jnp.einsum("epr,erq->epq", self.b, self.a).reshape(experts, p * q)
        return rows.T if self.is_transposed else rows

    def scaled(self, factor: Array | float) -> "StackedLowRank":
        if self.b.size < self.a.size:
            return StackedLowRank(factor * self.b, self.a, self.is_transposed)
        return StackedLowRank(self.b, factor * self.a, self.is_transposed)

    def __matmul__(self, x: Array) -> Array:
        (_, p, _), (*_, q), n = self.b.shape, self.a.shape, x.shape[1]
        if self.is_transposed:
            # Σₑ BₑAₑ xₑ contracts over experts and ranks at once.
            wide = jnp.einsum("erq,en->erqn", self.a, x)
            return jnp.einsum("epr,erqn->pqn", self.b, wide).reshape(p * q, n)
        thin = jnp.einsum("epr,pqn->erqn", self.b, x.reshape(p, q, n))
        return jnp.einsum("erq,erqn->en", self.a, thin)

    def rows(self, part: slice) -> Operator:
        if not self.is_transposed:
            return StackedLowRank(self.b[part], self.a[part])
        kept = slice_indices(part, self.shape[0])
        if len(kept) == 0:
            return Zero(0, self.shape[1])
        return Product(selection(kept, self.shape[0]), self)

    def flops(self) -> int:
        return 2 * self.a.shape[1] * math.prod(self.shape)

    def matmul_flops(self, n: int) -> int:
        inner, outer = self.b.size * self.a.shape[2], self.a.size
        return 2 * (inner + outer) * n
