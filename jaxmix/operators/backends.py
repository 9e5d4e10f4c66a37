"""What differs between backends where structured matrices are added to a dense one.

This is the only place that chooses by backend. `by_platform` decides when a program is lowered, so
a program that is lowered for a TPU on another host gets the TPU's form.

Measured with the compilers themselves, without a chip (``make aot``); docs/scale.md has the tables:

- On a TPU, XLA fuses one matrix product with everything around it, and a float32 product takes six
  bfloat16 passes, each with its inner dimension padded to 128 or 256. The same six products fit
  side by side in one inner dimension (`split`), which is as accurate and up to six times cheaper.
- On a GPU, XLA fuses nothing behind a matrix product: it writes Δ in float32 and reads it again.
  A sum of a few outer products fuses, so low ranks are written as one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Float

from jaxmix.operators.lowrank import Hadamard, LowRank

__all__ = ["GPU", "TPU", "Backend", "by_platform", "row_major", "split"]


@dataclass(frozen=True)
class Backend:
    """How a compiler is best told to add structured matrices to a dense one.

    Args:
        khatri_rao_rank: A Hadamard product of ranks r₁ and r₂ becomes one low rank up to this r₁r₂.
        unrolled_rank: Products up to this rank become sums of outer products.
        has_split_products: Whether float32 products become one bfloat16 product of split factors.
        has_tiles: Whether arrays are stored in tiles, so that a layout can be required.
    """

    khatri_rao_rank: int
    unrolled_rank: int
    has_split_products: bool
    has_tiles: bool

    def prepared(self, factors: LowRank) -> LowRank:
        """Returns factors whose plain product, accumulated in float32, is accurate."""
        is_split = self.has_split_products and factors.rank > 0
        if not is_split or {factors.a.dtype, factors.b.dtype} != {jnp.dtype("float32")}:
            return factors
        left, right = split(factors.b), split(factors.a)
        return LowRank(
            jnp.concatenate([left[i] for i, _ in _PAIRS], 1),
            jnp.concatenate([right[j] for _, j in _PAIRS], 0),
        )

    def product(self, factors: LowRank, dtype: Any) -> Float[Array, "rows cols"]:
        """Returns the matrix of prepared factors."""
        b, a = factors.b, factors.a
        if factors.rank <= self.unrolled_rank:
            outer = (b[:, i : i + 1] * a[i : i + 1] for i in range(factors.rank))
            return sum(outer, jnp.zeros((), dtype))
        return jnp.matmul(b, a, preferred_element_type=dtype)

    def is_low_rank(self, delta: Hadamard) -> bool:
        """Whether a Hadamard product is cheaper as one low rank."""
        return delta.left.rank * delta.right.rank <= self.khatri_rao_rank


# Over a bare pass, v5e and v6e: r₁r₂ = 64 took 1.09 and 1.02, 256 took 1.85 and 1.28, where the
# formula took 2.1 and 1.9; 1024 took 7.8 and 4.2.
TPU = Backend(khatri_rao_rank=256, unrolled_rank=0, has_split_products=True, has_tiles=True)
GPU = Backend(khatri_rao_rank=0, unrolled_rank=32, has_split_products=False, has_tiles=False)

# Which parts of two split factors are multiplied: all but those below float32's precision.
_PAIRS = ((0, 0), (0, 1), (1, 0), (0, 2), (1, 1), (2, 0))


def by_platform(
    cpu: Callable[..., Any], accelerator: Callable[..., Any], *operands: Any
) -> Any:
    """Runs the form of a computation that suits the platform on which the program is lowered.

    Args:
        cpu: The function for CPU.
        accelerator: The function for others, which takes the `Backend` first.
        *operands: Pytrees of arrays, the arguments of both functions.

    Returns:
        The result, of the same structure, shapes and dtypes from both.
    """

    def on(backend: Backend) -> Callable[..., Any]:
        return lambda *operands: accelerator(backend, *operands)

    return jax.lax.platform_dependent(*operands, cpu=cpu, tpu=on(TPU), default=on(GPU))


def split(x: Float[Array, "..."]) -> tuple[Array, Array, Array]:
    """Splits float32 numbers into three bfloat16 numbers each, whose sum has their 24 bits.

    Args:
        x: The numbers.

    Returns:
        The parts, from large to small.

    Example:
        >>> high, middle, low = split(jnp.array([1 + 2.0**-12 + 2.0**-22]))
        >>> float(high[0]), float(middle[0]) == 2.0**-12, float(low[0]) == 2.0**-22
        (1.0, True, True)
    """
    parts = []
    for _ in range(3):
        # Not a cast and back, which XLA may leave out.
        part = jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
        parts.append(part.astype(jnp.bfloat16))
        # An infinity stays one: without this, it would become NaN.
        x = jnp.where(jnp.isfinite(part), x - part, jnp.zeros_like(x))
    return tuple(parts)


def row_major(x: Array) -> Array:
    """Requires the layout in which the last axis is contiguous, in a traced function."""
    return with_layout_constraint(x, Layout(tuple(range(x.ndim))))
