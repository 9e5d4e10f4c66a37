"""What differs between backends where structured matrices are added to a dense one.

This is the only place that chooses by backend. `by_platform` decides when a program is lowered, so
a program that is lowered for a TPU on another host gets the TPU's form.

Measured with the compilers themselves, without a chip (``make aot``, docs/accelerators.md):

- On a TPU, XLA fuses one matrix product with everything around it, and a float32 product takes six
  bfloat16 passes, each with its inner dimension padded to 128 or 256. The same six products fit
  side by side in one inner dimension (`split`), which is as accurate and up to six times cheaper.
- On a GPU, XLA fuses nothing with a second operand behind a matrix product: it writes Δ in float32
  and reads it again, and moves three times the bytes. A sum over a short axis fuses into the pass
  over the weight, so low ranks are written as a few of them, as their gradients are.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmix.operators.base import Operator
from jaxmix.operators.blocks import BlockDiagonal
from jaxmix.operators.compound import Product
from jaxmix.operators.lowrank import Hadamard, LowRank

__all__ = ["GPU", "TPU", "Backend", "by_platform", "split"]


@dataclass(frozen=True)
class Backend:
    """How a compiler is best told to add structured matrices to a dense one.

    Args:
        khatri_rao_rank: A Hadamard product of ranks r₁ and r₂ becomes one low rank up to this r₁r₂.
        summed_rank: Matrix products up to this inner dimension become sums over it.
        has_split_products: Whether float32 products become one bfloat16 product of split factors.
        has_tiles: Whether arrays are stored in tiles, and XLA chooses their order.
        has_loops: Whether large products and decompositions are loops, as XLA would unroll them.
        has_transforms: Whether XLA compiles Fourier transforms in seconds.
        block_size: Tokens are rotated in blocks of at least this size, where they fit.
        least_tokens: Fewer tokens are filled up with zeros.
    """

    khatri_rao_rank: int
    summed_rank: int
    has_split_products: bool
    has_tiles: bool
    has_loops: bool
    has_transforms: bool
    block_size: int = 1
    least_tokens: int = 1

    def rotated(self, x: Float[Array, "n i"], rotation: Operator, dtype: Any) -> Array:
        """Returns ``x R`` for tokens.

        Args:
            x: The tokens.
            rotation: R.
            dtype: The dtype of the result, in which blocks are multiplied.
        """
        match rotation:
            case Product():
                return self.rotated(self.rotated(x, rotation.first, dtype), rotation.second, dtype)
            case BlockDiagonal():
                blocks = BlockDiagonal(rotation.blocks.astype(dtype), rotation.copies)
                size = math.lcm(rotation.block_size, self.block_size)
                fits = size == self.block_size and rotation.shape[0] % size == 0
                return x.astype(dtype) @ (blocks.coarse(size) if fits else blocks)
            case _:
                return (x @ rotation).astype(dtype)

    def prepared(self, factors: LowRank, *, view: int | None = None) -> LowRank:
        """Returns factors whose plain product, accumulated in float32, is accurate.

        Args:
            factors: The factors.
            view: The size k of the second axis if the product is used as (l, k, cols).
        """
        is_split = self.has_split_products and factors.rank > 0
        if view is not None and view >= _LARGE_VIEW and factors.rank >= _LARGE_RANK:
            is_split = False
        if not is_split or {factors.a.dtype, factors.b.dtype} != {jnp.dtype("float32")}:
            return factors
        left, right = zip(*_PAIRS, strict=True)
        # XLA carries the view into a selection, and writes what it selects from out in full.
        joined = split if view is None else _split_and_joined
        return LowRank(joined(factors.b.T, left).T, joined(factors.a, right))

    def product(
        self, b: Float[Array, "*rows r"], a: Float[Array, "r cols"], dtype: Any
    ) -> Float[Array, "*rows cols"]:
        """Returns the product of prepared factors, accumulated in a dtype."""
        rank = a.shape[0]
        if not 0 < rank <= self.summed_rank:
            return self.matmul(b, a, dtype)
        a = a.reshape((1,) * (b.ndim - 1) + a.shape)

        def part(start: int) -> Array:
            here = slice(start, start + _SUM)
            return jnp.sum(b[..., here, None] * a[..., here, :], -2, dtype=dtype)

        return reduce(jnp.add, map(part, range(0, rank, _SUM)))

    def matmul(self, b: Array, a: Array, dtype: Any) -> Array:
        """Returns the product of prepared factors as one matrix product."""
        return jnp.matmul(b, a, precision="highest", preferred_element_type=dtype)

    def is_low_rank(self, delta: Hadamard) -> bool:
        """Whether a Hadamard product is cheaper as one low rank."""
        return delta.left.rank * delta.right.rank <= self.khatri_rao_rank


# Over a bare pass, v5e and v6e: r₁r₂ = 64 took 1.09 and 1.02, 256 took 1.85 and 1.28, where the
# formula took 2.1 and 1.9; 1024 took 7.8 and 4.2.
# A v5e's matrix unit holds 128 × 128 numbers. XLA multiplies fewer tokens than the 8 rows of a tile
# outside of it, which took 2.3 times as long for 14336 × 4096.
TPU = Backend(
    khatri_rao_rank=256,
    summed_rank=0,
    has_split_products=True,
    has_tiles=True,
    has_loops=True,
    has_transforms=False,
    block_size=128,
    least_tokens=8,
)
# Above a rank of 32, the sum's loads from the caches are expected to cost more than Δ's in HBM;
# without a GPU, neither was measured.
GPU = Backend(
    khatri_rao_rank=0,
    summed_rank=32,
    has_split_products=False,
    has_tiles=False,
    has_loops=False,
    has_transforms=True,
)

# A GPU's sums are over this many numbers each. Longer ones are kernels of their own: one from 32,
# two whose product is taken from 16, and any whose result is summed again, as in norms.
_SUM = 8

# From this size and rank on, the float32 product in a view costs less than splitting its factors:
# for LoRA, LoHa and LoKr on (1024, 4096) v5e took 1.03 and 1.77, v6e 1.04 and 1.54. With less of
# either, or without a view, XLA moves the leaf into another order for it.
_LARGE_VIEW = 16
_LARGE_RANK = 64

# Which parts of two split factors are multiplied: all but those below float32's precision.
_PAIRS = ((0, 0), (0, 1), (1, 0), (0, 2), (1, 1), (2, 0))


def by_platform(cpu: Callable[..., Any], accelerator: Callable[..., Any], *operands: Any) -> Any:
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


def split(x: Float[Array, "r n"], order: tuple[int, ...]) -> Float[Array, "k n"]:
    """Splits float32 numbers into three bfloat16 numbers each, whose sum has their 24 bits.

    Args:
        x: The numbers.
        order: Which parts to return below each other: 0 for the largest part, 2 for the smallest.

    Returns:
        The parts (len(order)·r, n).

    Example:
        >>> parts = split(jnp.array([[1 + 2.0**-12 + 2.0**-22]]), (0, 1, 2, 0))
        >>> [float(part) for part in parts[:, 0]] == [1, 2.0**-12, 2.0**-22, 1]
        True
    """
    # One elementwise expression, which is one kernel; concatenated parts are one kernel each.
    parts = _parts(jnp.broadcast_to(x[None], (len(order), *x.shape)))
    which = jnp.asarray(order, jnp.int32)[:, None, None]
    chosen = jnp.where(which == 0, parts[0], jnp.where(which == 1, parts[1], parts[2]))
    return chosen.astype(jnp.bfloat16).reshape(len(order) * x.shape[0], x.shape[1])


def _split_and_joined(x: Array, order: tuple[int, ...]) -> Array:
    """The same as `split`, by concatenation."""
    parts = [part.astype(jnp.bfloat16) for part in _parts(x)]
    return jnp.concatenate([parts[i] for i in order], 0)


def _parts(x: Array) -> tuple[Array, Array, Array]:
    """The numbers' three parts, still in float32."""
    high = _rounded(x)
    middle = _rounded(x - high)
    return high, middle, _rounded(x - high - middle)


def _rounded(x: Array) -> Array:
    """Rounds to bfloat16's precision; XLA may leave out a cast and back."""
    return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
