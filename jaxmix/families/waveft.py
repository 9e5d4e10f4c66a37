"""WaveFT: a few wavelet coefficients of Δ."""

from dataclasses import dataclass, field
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxmix.affine import AffineMap, Base, shift
from jaxmix.families.base import Update, mismatch
from jaxmix.families.places import beyond
from jaxmix.families.wavelets import low_pass
from jaxmix.operators import Product, Sparse

__all__ = ["WaveFT"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class WaveFT(Update):
    """WaveFT: ``W' = W + γ·R S Cᵀ``, with S sparse, and R and C putting a wavelet together.

    S is padded for the filter, and its quarters are the coefficients of the one level that PEFT
    uses: averages, details along columns, along rows, along both. All three factors are sparse.

    Strength s: ``W' = W + s·γ·R S Cᵀ``.

    Args:
        spectrum: the numbers of S (n,), PEFT's ``waveft_spectrum``.
        indices: (2, n), the rows and the columns in W, which PEFT draws from a seed and does not
            save.
        scale: γ, PEFT's ``scaling``.
        wavelet: the wavelet's name, one of `jaxmix.families.wavelets`; None for S as it is
            (``use_idwt=False``).
        seed: the seed from which PEFT draws these indices; None where they are from elsewhere.
        transposed: whether PyTorch stores the weight as (in, out).

    Raises:
        ShapeError: by `compose`, where numbers and positions differ in number, or lie beyond W.

    Example:
        >>> one = WaveFT(jnp.ones(1), jnp.zeros((2, 1), int), 2.0, "haar")
        >>> jnp.round(one.weight_map(Base(None, (2, 2)), jnp.ones(())).shift.dense(), 6).tolist()
        [[1.0, 1.0], [1.0, 1.0]]

    Source: https://arxiv.org/abs/2505.12532; ``peft/tuners/waveft/layer.py``.
    """

    spectrum: Float[Array, " n"]
    indices: Int[Array, "2 n"]
    scale: Float[Array, ""] | float
    wavelet: str | None = field(default="db1", metadata={"static": True})
    seed: int | None = field(default=None, metadata={"static": True})
    transposed: bool = field(default=False, metadata={"static": True})

    family: ClassVar[str] = "WaveFT"

    def weight_map(self, base: Base, strength: Float[Array, ""]) -> AffineMap:
        """``(I, I, sγ·R S Cᵀ)``."""
        values = strength * self.scale * self.spectrum
        if self.wavelet is None:
            return shift(Sparse(values, self.indices, *base.shape))
        filters = low_pass(self.wavelet)
        rows, cols = (_padded(size, len(filters)) for size in base.shape)
        i = self.indices[0] + (rows - base.shape[0]) // 2
        j = self.indices[1] + (cols - base.shape[1]) // 2
        # PEFT takes the upper right quarter for details along columns of W: R's own details.
        up, left = i < rows // 2, j < cols // 2
        swapped = up != left
        i = jnp.where(swapped, jnp.where(up, i + rows // 2, i - rows // 2), i)
        j = jnp.where(swapped, jnp.where(left, j + cols // 2, j - cols // 2), j)
        spectrum = Sparse(values, jnp.stack([i, j]), rows, cols)
        first = _synthesis(filters, base.shape[0], values.dtype)
        last = _synthesis(filters, base.shape[1], values.dtype)
        return shift(Product(Product(first, spectrum), last.T))

    def misfit(self, shape: tuple[int, int]) -> str | None:
        """Whether there is a number a position, and the positions lie in W."""
        factors = {
            "waveft_spectrum": (self.spectrum, ("n",)),
            "waveft_indices": (self.indices, (2, "n")),
        }
        return mismatch(factors, shape) or beyond("waveft_indices", self.indices, shape)

    def size(self) -> str:
        """How many coefficients, and of which wavelet."""
        return f"{self.spectrum.shape[0]} coefficients of {self.wavelet or 'no wavelet'}"


def _padded(size: int, length: int) -> int:
    """How many coefficients a side of this size has: even, and more by the filter's length."""
    return size + length - 2 + (size + length) % 2


def _synthesis(filters: tuple[float, ...], size: int, dtype: np.dtype) -> Sparse:
    """The matrix (size, coefficients): averages in its left half, details in its right.

    Each coefficient adds its filter, two places on from the last one's; what overlaps the ends by
    the filter's length is cut off.
    """
    length = len(filters)
    columns = _padded(size, length)
    half = columns // 2
    made = columns - length + 2  # of columns + length − 2, both ends cut
    cut = length - 2 + (made - size) // 2
    low = np.asarray(filters)
    high = low[::-1] * (-1.0) ** np.arange(length)
    k, t = (axis.ravel() for axis in np.meshgrid(np.arange(half), np.arange(length), indexing="ij"))
    rows = 2 * k + t - cut
    inside = (rows >= 0) & (rows < size)
    rows, k, t = rows[inside], k[inside], t[inside]
    values = np.concatenate([low[t], high[t]])
    places = np.stack([np.tile(rows, 2), np.concatenate([k, k + half])]).astype(np.int32)
    return Sparse(jnp.asarray(values, dtype), jnp.asarray(places), size, columns)
