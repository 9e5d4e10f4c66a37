"""WaveFT: a few wavelet coefficients of Δ."""

import math
from dataclasses import dataclass, field
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxmix.affine import AffineMap, Base, shift
from jaxmix.families.base import Update, mismatch
from jaxmix.families.positions import as_int32, position_misfit
from jaxmix.families.wavelets import low_pass
from jaxmix.operators import Product, Sparse

__all__ = ["WaveFT"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class WaveFT(Update):
    """WaveFT: ``W' = W + γ·R S Cᵀ``, with S sparse, and R and C putting a wavelet together.

    S is padded for the filter, and its quarters are the coefficients of the one level that PEFT
    uses: averages, details along columns, along rows, along both. All three factors are sparse, and
    so is the product of a few entries: each is a patch as large as the filter.

    Strength s: ``W' = W + s·γ·R S Cᵀ``.

    Args:
        spectrum: The non-zero entries of S (n,), PEFT's ``waveft_spectrum``.
        indices: (2, n), the rows and the columns in W, which PEFT draws from a seed and does not
            save.
        scale: γ, PEFT's ``scaling``.
        wavelet: The wavelet's name, one of `jaxmix.families.wavelets`; None for S as it is
            (``use_idwt=False``).
        seed: the seed from which PEFT draws these indices; None where they are from elsewhere.
        transposed: Whether PyTorch stores the weight as (in, out); None if unknown.

    Raises:
        ShapeError: Raised by `compose` if values and positions differ in number, or are outside W.

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
    transposed: bool | None = field(default=False, metadata={"static": True})

    family: ClassVar[str] = "WaveFT"
    trained: ClassVar[tuple[str, ...]] = ("spectrum",)

    def weight_map(self, base: Base, strength: Float[Array, ""]) -> AffineMap:
        """``(I, I, sγ·R S Cᵀ)``."""
        values, indices = strength * self.scale * self.spectrum, as_int32(self.indices)
        if self.wavelet is None:
            return shift(Sparse(values, indices, *base.shape))
        filters = low_pass(self.wavelet)
        rows, cols = (_padded(size, len(filters)) for size in base.shape)
        i = indices[0] + (rows - base.shape[0]) // 2
        j = indices[1] + (cols - base.shape[1]) // 2
        # PEFT takes the upper right quarter for details along columns of W: R's own details.
        up, left = i < rows // 2, j < cols // 2
        swapped = up != left
        i = jnp.where(swapped, jnp.where(up, i + rows // 2, i - rows // 2), i)
        j = jnp.where(swapped, jnp.where(left, j + cols // 2, j - cols // 2), j)
        spectrum = Sparse(values, jnp.stack([i, j]), rows, cols)
        if spectrum.values.size * len(filters) ** 2 <= math.prod(base.shape):
            return shift(_patches(filters, spectrum, base.shape))
        first = _synthesis(filters, base.shape[0], values.dtype)
        last = _synthesis(filters, base.shape[1], values.dtype)
        return shift(Product(Product(first, spectrum), last.T))

    def misfit(self, shape: tuple[int, int]) -> str | None:
        """Checks that there is a number a position, and the positions lie in W."""
        factors = {
            "waveft_spectrum": (self.spectrum, ("n",)),
            "waveft_indices": (self.indices, (2, "n")),
            "scale": (self.scale, ()),
        }
        return mismatch(factors, shape) or position_misfit("waveft_indices", self.indices, shape)

    def size(self) -> str:
        """How many coefficients, and of which wavelet."""
        return f"{self.spectrum.shape[0]} coefficients of {self.wavelet or 'no wavelet'}"


def _padded(size: int, length: int) -> int:
    """How many coefficients a side of this size has: even, and more by the filter's length."""
    return size + length - 2 + (size + length) % 2


def _cut(size: int, length: int) -> int:
    """How many of the values that coefficients make for a side are cut off before its first."""
    made = _padded(size, length) - length + 2  # of coefficients + length − 2, both ends cut
    return length - 2 + (made - size) // 2


def _pair(filters: tuple[float, ...]) -> np.ndarray:
    """The filter of averages and that of details (2, length)."""
    low = np.asarray(filters)
    return np.stack([low, low[::-1] * (-1.0) ** np.arange(len(low))])


def _patches(filters: tuple[float, ...], spectrum: Sparse, shape: tuple[int, int]) -> Sparse:
    """``R S Cᵀ`` entry by entry: a number of S is the product of two filters, where it lies.

    R times a dense matrix takes as many times its memory as the filter has values.
    """
    length, pair = len(filters), jnp.asarray(_pair(filters), spectrum.values.dtype)
    sides: list[tuple[Array, Array]] = []
    for at, count, size in zip(spectrum.indices, spectrum.shape, shape, strict=True):
        is_detail = (at >= count // 2).astype(at.dtype)
        start = 2 * (at - count // 2 * is_detail) - _cut(size, length)
        places = start[:, None] + jnp.arange(length, dtype=at.dtype)[None]
        inside = (places >= 0) & (places < size)
        heights = jnp.where(inside, pair[is_detail], 0)
        sides.append((jnp.where(inside, places, 0), heights))
    (rows, up), (cols, across) = sides
    values = spectrum.values[:, None, None] * up[:, :, None] * across[:, None, :]
    grids = (rows[:, :, None], cols[:, None, :])
    indices = jnp.stack([jnp.broadcast_to(grid, values.shape).reshape(-1) for grid in grids])
    return Sparse(values.reshape(-1), indices, *shape)


def _synthesis(filters: tuple[float, ...], size: int, dtype: np.dtype) -> Sparse:
    """The matrix (size, coefficients): averages in its left half, details in its right.

    Each coefficient adds its filter, two places on from the last one's; what overlaps the ends by
    the filter's length is cut off.
    """
    length = len(filters)
    columns, cut = _padded(size, length), _cut(size, length)
    half = columns // 2
    low, high = _pair(filters)
    k, t = (axis.ravel() for axis in np.meshgrid(np.arange(half), np.arange(length), indexing="ij"))
    rows = 2 * k + t - cut
    inside = (rows >= 0) & (rows < size)
    rows, k, t = rows[inside], k[inside], t[inside]
    values = np.concatenate([low[t], high[t]])
    places = np.stack([np.tile(rows, 2), np.concatenate([k, k + half])]).astype(np.int32)
    return Sparse(jnp.asarray(values, dtype), jnp.asarray(places), size, columns)
