"""A grid of circulant blocks."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxmix.operators.base import Operator, picked
from jaxmix.operators.blocks import covering, within
from jaxmix.operators.compound import Product
from jaxmix.operators.simple import Zero

__all__ = ["Circulant"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Circulant(Operator):
    """A grid of circulant blocks: the entry ``[i·b + p, j·b + q]`` is ``k[i, j, (q − p) mod b]``.

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
        # Places are counted by XLA: as a constant of the program they would be as large as a block.
        size = self.kernels.shape[2]
        places = jnp.arange(size, dtype=np.int32)
        spread = jnp.asarray(self.kernels)[:, :, (places[None, :] - places[:, None]) % size]
        return jnp.transpose(spread, (0, 2, 1, 3)).reshape(self.shape)

    def scaled(self, factor: Array | float) -> "Circulant":
        return Circulant(factor * self.kernels)

    def __matmul__(self, x: Array) -> Array:
        count = x.shape[1]
        if self._wide_flops(count) <= self._thin_flops(count):
            return self.dense() @ x
        _, n, b = self.kernels.shape
        out_dtype = jnp.result_type(self.kernels, x)
        dtype = np.promote_types(out_dtype, np.float32)  # the transform's least
        waves = jnp.fft.rfft(jnp.asarray(self.kernels).astype(dtype), axis=2)
        parts = jnp.fft.rfft(x.reshape(n, b, count).astype(dtype), axis=1)
        # With the kernel's conjugate it is a correlation: q − p, not p − q.
        made = jnp.fft.irfft(jnp.einsum("mnf,nfc->mfc", waves.conj(), parts), b, axis=1)
        return made.reshape(self.shape[0], count).astype(out_dtype)

    def rows(self, part: slice) -> Operator:
        kept, size = picked(part, self.shape[0]), self.kernels.shape[2]
        if len(kept) == 0:
            return Zero(0, self.shape[1])
        first, last = covering(kept, size)
        strip, covered = Circulant(self.kernels[first:last]), range(first * size, last * size)
        return strip if kept == covered else Product(within(kept, covered), strip)

    def flops(self) -> int:
        return 0

    def matmul_flops(self, n: int) -> int:
        return min(self._wide_flops(n), self._thin_flops(n))

    def _wide_flops(self, n: int) -> int:
        """The cost of ``M x`` by the dense matrix."""
        return 2 * math.prod(self.shape) * n

    def _thin_flops(self, count: int) -> int:
        """The cost of ``M x`` by Fourier transforms of real vectors, the kernels' among them."""
        m, n, b = self.kernels.shape
        transform = int(2.5 * b * math.log2(max(b, 2)))
        return (m * n + (m + n) * count) * transform + 8 * m * n * (b // 2 + 1) * count
