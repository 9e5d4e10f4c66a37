"""WaveFT: a few wavelet coefficients of Δ."""

import math
from dataclasses import dataclass, field
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxmix.affine import AffineMap, Base, shift
from jaxmix.families.base import Update, mismatch
from jaxmix.families.positions import as_int32, position_misfit
from jaxmix.families.wavelets import low_pass
from jaxmix.operators import Product, Sparse
from jaxmix.pytrees import register_dataclass

__all__ = ["WaveFT"]


@register_dataclass
@dataclass(frozen=True, eq=False)
class WaveFT(Update):
    """WaveFT: ``W' = W + γ·R S Cᵀ``, where S is sparse and R and C are inverse wavelet transforms.

    S is padded for the filter. Its quarters are the coefficients of a single level, as in PEFT:
    averages, details along columns, along rows and along both. All three factors are sparse. With
    few entries in S, Δ is sparse too: each entry becomes a patch of the filter's size.

    Strength s: ``W' = W + s·γ·R S Cᵀ``.

    Args:
        spectrum: The non-zero entries of S (n,), PEFT's ``waveft_spectrum``.
        indices: Their rows and columns in W (2, n), which PEFT draws from a seed and does not save.
        scale: γ, PEFT's ``scaling``.
        wavelet: The wavelet's name, one of ``jaxmix.families.wavelets.WAVELETS``; None to use S
            without a transform (``use_idwt=False``).
        seed: The seed from which PEFT draws these indices, None if unknown; see `for_export`.
        transposed: Whether PyTorch stores the weight as (in, out); None if unknown.

    Raises:
        ShapeError: Raised by `compose` if there are not as many positions as values, or some
            positions are outside W.

    Example:
        >>> haar = WaveFT(jnp.ones(1), jnp.zeros((2, 1), int), 2.0, "haar")
        >>> jnp.round(haar.weight_map(Base(None, (2, 2)), jnp.ones(())).shift.dense(), 6).tolist()
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
    for_export: ClassVar[tuple[str, ...]] = ("seed",)

    def weight_map(self, base: Base, strength: Float[Array, ""]) -> AffineMap:
        """``(I, I, sγ·R S Cᵀ)``."""
        values, indices = strength * self.scale * self.spectrum, as_int32(self.indices)
        if self.wavelet is None:
            return shift(Sparse(values, indices, *base.shape))
        filters = low_pass(self.wavelet)
        rows, cols = (_padded_size(size, len(filters)) for size in base.shape)
        i = indices[0] + (rows - base.shape[0]) // 2
        j = indices[1] + (cols - base.shape[1]) // 2
        # In PEFT the upper right quarter holds details along columns of W, which R generates.
        up, left = i < rows // 2, j < cols // 2
        swapped = up != left
        i = jnp.where(swapped, jnp.where(up, i + rows // 2, i - rows // 2), i)
        j = jnp.where(swapped, jnp.where(left, j + cols // 2, j - cols // 2), j)
        spectrum = Sparse(values, jnp.stack([i, j]), rows, cols)
        if spectrum.values.size * len(filters) ** 2 <= math.prod(base.shape):
            return shift(_patches(filters, spectrum, base.shape))
        r = _synthesis(filters, base.shape[0], values.dtype)
        c = _synthesis(filters, base.shape[1], values.dtype)
        return shift(Product(Product(r, spectrum), c.T))

    def misfit(self, shape: tuple[int, int]) -> str | None:
        """Checks that there is one value per position and that the positions are inside W."""
        factors = {
            "waveft_spectrum": (self.spectrum, ("n",)),
            "waveft_indices": (self.indices, (2, "n")),
            "scale": (self.scale, ()),
        }
        return mismatch(factors, shape) or position_misfit("waveft_indices", self.indices, shape)

    def size(self) -> str:
        """The number of coefficients, and the wavelet."""
        return f"{self.spectrum.shape[0]} coefficients of {self.wavelet or 'no wavelet'}"


def _padded_size(size: int, length: int) -> int:
    """Returns the number of coefficients of a side, even and padded for the filter's length."""
    return size + length - 2 + (size + length) % 2


def _offset(size: int, length: int) -> int:
    """Returns how many synthesized values are cropped before the first value of a side."""
    valid = _padded_size(size, length) - length + 2  # values that the whole filter contributes to
    return length - 2 + (valid - size) // 2


def _filter_pair(filters: tuple[float, ...]) -> np.ndarray:
    """Returns the filters of averages and of details (2, length)."""
    low = np.asarray(filters)
    return np.stack([low, low[::-1] * (-1.0) ** np.arange(len(low))])


def _patches(filters: tuple[float, ...], spectrum: Sparse, shape: tuple[int, int]) -> Sparse:
    """Computes ``R S Cᵀ`` entry by entry: each entry of S becomes an outer product of two filters.

    Multiplying R with a dense matrix would need the filter's length times the memory of the matrix.
    """
    length, pair = len(filters), jnp.asarray(_filter_pair(filters), spectrum.values.dtype)
    sides: list[tuple[Array, Array]] = []
    for at, count, size in zip(spectrum.indices, spectrum.shape, shape, strict=True):
        is_detail = (at >= count // 2).astype(at.dtype)
        start = 2 * (at - count // 2 * is_detail) - _offset(size, length)
        positions = start[:, None] + jnp.arange(length, dtype=at.dtype)[None]
        inside = (positions >= 0) & (positions < size)
        heights = jnp.where(inside, pair[is_detail], 0)
        sides.append((jnp.where(inside, positions, 0), heights))
    (rows, up), (cols, across) = sides
    values = spectrum.values[:, None, None] * up[:, :, None] * across[:, None, :]
    grids = (rows[:, :, None], cols[:, None, :])
    indices = jnp.stack([jnp.broadcast_to(grid, values.shape).reshape(-1) for grid in grids])
    return Sparse(values.reshape(-1), indices, *shape)


def _synthesis(filters: tuple[float, ...], size: int, dtype: np.dtype) -> Sparse:
    """Returns the matrix (size, coefficients) with averages in the left half, details in the right.

    Each coefficient adds its filter, shifted by two positions from the previous one. Values beyond
    the ends are cropped.
    """
    length = len(filters)
    columns, offset = _padded_size(size, length), _offset(size, length)
    half = columns // 2
    low, high = _filter_pair(filters)
    k, t = (axis.ravel() for axis in np.meshgrid(np.arange(half), np.arange(length), indexing="ij"))
    rows = 2 * k + t - offset
    inside = (rows >= 0) & (rows < size)
    rows, k, t = rows[inside], k[inside], t[inside]
    values = np.concatenate([low[t], high[t]])
    indices = np.stack([np.tile(rows, 2), np.concatenate([k, k + half])]).astype(np.int32)
    return Sparse(jnp.asarray(values, dtype), jnp.asarray(indices), size, columns)
