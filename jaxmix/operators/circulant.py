"""A grid of circulant blocks."""

import math
from dataclasses import dataclass
from functools import partial

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxmix.operators.backends import Backend, by_platform
from jaxmix.operators.base import Operator, slice_indices
from jaxmix.operators.blocks import covering_blocks, rows_within
from jaxmix.operators.compound import Product
from jaxmix.operators.simple import Zero
from jaxmix.pytrees import register_dataclass

__all__ = ["Circulant"]

# Larger blocks are left to XLA's transforms: the matrices of waves have a block's size.
_LARGEST = 4096


@register_dataclass
@dataclass(frozen=True, eq=False)
class Circulant(Operator):
    """A grid of circulant blocks; entry ``[i·b + p, j·b + q]`` is ``k[i, j, (q − p) mod b]``.

    Args:
        kernels: k (m, n, b), the first row of each block; the matrix is (m·b, n·b).

    Example:
        >>> Circulant(jnp.arange(3.0).reshape(1, 1, 3)).dense().tolist()
        [[0.0, 1.0, 2.0], [2.0, 0.0, 1.0], [1.0, 2.0, 0.0]]
    """

    kernels: Float[Array, "m n b"]

    @property
    def shape(self) -> tuple[int, int]:
        m, n, b = self.kernels.shape
        return m * b, n * b

    @property
    def T(self) -> "Circulant":
        first = jnp.roll(jnp.flip(self.kernels, 2), 1, 2)
        return Circulant(jnp.swapaxes(first, 0, 1))

    def dense(self) -> Array:
        # XLA computes the positions: as a constant they would be as large as a block.
        size = self.kernels.shape[2]
        positions = jnp.arange(size, dtype=np.int32)
        spread = jnp.asarray(self.kernels)[:, :, (positions[None, :] - positions[:, None]) % size]
        return jnp.transpose(spread, (0, 2, 1, 3)).reshape(self.shape)

    def scaled(self, factor: Array | float) -> "Circulant":
        return Circulant(factor * self.kernels)

    def __matmul__(self, x: Array) -> Array:
        count = x.shape[1]
        if self._wide_flops(count) <= self._thin_flops(count):
            return self.dense() @ x
        _, n, b = self.kernels.shape
        out_dtype = jnp.result_type(self.kernels, x)
        dtype = np.promote_types(out_dtype, np.float32)  # the FFT needs at least float32
        kernels, parts = jnp.asarray(self.kernels).astype(dtype), x.reshape(n, b, count)

        def on_accelerator(backend: Backend, kernels: Array, parts: Array) -> Array:
            by_xla = backend.has_transforms or b > _LARGEST
            return (_by_transforms if by_xla else _by_waves)(kernels, parts)

        out = by_platform(_by_transforms, on_accelerator, kernels, parts.astype(dtype))
        return out.reshape(self.shape[0], count).astype(out_dtype)

    def rows(self, part: slice) -> Operator:
        kept, size = slice_indices(part, self.shape[0]), self.kernels.shape[2]
        if len(kept) == 0:
            return Zero(0, self.shape[1])
        first, last = covering_blocks(kept, size)
        strip, covered = Circulant(self.kernels[first:last]), range(first * size, last * size)
        return strip if kept == covered else Product(rows_within(kept, covered), strip)

    def flops(self) -> int:
        return 0

    def matmul_flops(self, n: int) -> int:
        return min(self._wide_flops(n), self._thin_flops(n))

    def _wide_flops(self, n: int) -> int:
        """The cost of ``M x`` with the dense matrix."""
        return 2 * math.prod(self.shape) * n

    def _thin_flops(self, count: int) -> int:
        """The cost of ``M x`` with real Fourier transforms, including those of the kernels."""
        m, n, b = self.kernels.shape
        transform = int(2.5 * b * math.log2(max(b, 2)))
        return (m * n + (m + n) * count) * transform + 8 * m * n * (b // 2 + 1) * count


def _by_transforms(kernels: Float[Array, "m n b"], x: Float[Array, "n b c"]) -> Array:
    """The product (m, b, c) by real Fourier transforms."""
    waves, parts = jnp.fft.rfft(kernels, axis=2), jnp.fft.rfft(x, axis=1)
    # The kernel's conjugate makes it a correlation (q − p) instead of a convolution (p − q).
    return jnp.fft.irfft(jnp.einsum("mnf,nfc->mfc", waves.conj(), parts), x.shape[1], axis=1)


def _by_waves(kernels: Float[Array, "m n b"], x: Float[Array, "n b c"]) -> Array:
    """The same by products with cosines and sines.

    For 2048 tokens and blocks of 256, a v5e's compiler takes 44 s for the transforms and 6 s for
    these products, and expects the products to take a third of the time.
    """
    size = x.shape[1]
    count, exact = size // 2 + 1, partial(jnp.einsum, precision="highest")
    # XLA computes them: as constants they would be as large as a block.
    at, f = (jnp.arange(n, dtype=np.int32)[:, None] for n in (size, count))
    angles = (at * f.T % size).astype(x.dtype) * (2 * math.pi / size)
    waves = jnp.stack([jnp.cos(angles), jnp.sin(angles)])
    spectrum, parts = exact("mnb,tbf->ftmn", kernels, waves), exact("nbc,tbf->ftnc", x, waves)
    cosines, sines = spectrum[:, 0], spectrum[:, 1]
    turned = jnp.stack([jnp.stack([cosines, sines], 2), jnp.stack([-sines, cosines], 2)], 1)
    products = jnp.einsum("fsmtn,ftnc->fsmc", turned, parts)
    # Each frequency stands for its negative too, except for 0 and the last one of an even size.
    weights = jnp.where((f == 0) | (2 * f == size), 1, 2).astype(x.dtype) / size
    return exact("fsmc,sbf->mbc", products, waves * weights.T[None])
