"""FourierFT: a few Fourier coefficients of Δ."""

import math
from dataclasses import dataclass, field
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxmix.affine import AffineMap, Base, shift
from jaxmix.families.base import Update, mismatch
from jaxmix.families.positions import position_misfit
from jaxmix.operators import Dense, LowRank, Operator
from jaxmix.operators.backends import Backend, by_platform
from jaxmix.operators.loops import carry
from jaxmix.operators.solving import product
from jaxmix.pytrees import register_dataclass

__all__ = ["FourierFT"]

# The coefficients that are added at once; their low rank has twice this rank.
_RUN = 128


@register_dataclass
@dataclass(frozen=True, eq=False)
class FourierFT(Update):
    """FourierFT: ``W' = W + γ·Re F⁻¹(S)``, where S is a sparse spectrum (out, in).

    A coefficient v at (i, j) gives a wave of rank two, ``v/(out·in) · cos 2π(i·p/out + j·q/in)``.
    A few coefficients are cheaper as a low rank; for many Δ is dense, from the inverse transform.

    Strength s: ``W' = W + s·γ·Re F⁻¹(S)``.

    Args:
        spectrum: The non-zero entries of S (n,), PEFT's ``fourierft_spectrum``.
        indices: Their rows and columns (2, n), which PEFT draws from a seed and does not save.
        scale: γ, PEFT's ``scaling``.
        seed: The seed from which PEFT draws these indices, None if unknown; see `for_export`.
        transposed: Whether PyTorch stores the weight as (in, out); None if unknown.

    Raises:
        ShapeError: Raised by `compose` if there are not as many positions as values, or some
            positions are outside W.

    Example:
        >>> flat = FourierFT(jnp.ones(1), jnp.zeros((2, 1), int), scale=6.0)
        >>> flat.weight_map(Base(None, (1, 2)), jnp.ones(())).shift.dense().tolist()
        [[3.0, 3.0]]

    Source: https://arxiv.org/abs/2405.03003; ``peft/tuners/fourierft/layer.py``.
    """

    spectrum: Float[Array, " n"]
    indices: Int[Array, "2 n"]
    scale: Float[Array, ""] | float
    seed: int | None = field(default=None, metadata={"static": True})
    transposed: bool | None = field(default=False, metadata={"static": True})

    family: ClassVar[str] = "FourierFT"
    trained: ClassVar[tuple[str, ...]] = ("spectrum",)
    for_export: ClassVar[tuple[str, ...]] = ("seed",)

    def weight_map(self, base: Base, strength: Float[Array, ""]) -> AffineMap:
        """``(I, I, sγ·Re F⁻¹(S))``."""
        out_size, in_size = base.shape
        values = strength * self.scale * self.spectrum
        if 2 * values.shape[0] * (out_size + in_size) < out_size * in_size:
            return shift(_waves(values, self.indices, base.shape))
        return shift(_inverse(values, self.indices, base.shape))

    def misfit(self, shape: tuple[int, int]) -> str | None:
        """Checks that there is one value per position and that the positions are inside W."""
        factors = {
            "fourierft_spectrum": (self.spectrum, ("n",)),
            "indices": (self.indices, (2, "n")),
            "scale": (self.scale, ()),
        }
        return mismatch(factors, shape) or position_misfit("indices", self.indices, shape)

    def size(self) -> str:
        """The number of coefficients."""
        return f"{self.spectrum.shape[0]} frequencies"


def _inverse(values: Array, indices: Array, shape: tuple[int, int]) -> Operator:
    """Computes Δ as a dense matrix.

    A TPU's compiler takes a minute for the transform of a spectrum (1024, 4096). There Δ is a sum
    of low ranks.
    """
    exact = jnp.asarray(values, np.promote_types(values.dtype, np.float32))

    def by_transform(values: Array, indices: Array) -> Array:
        spectrum = jnp.zeros(shape, values.dtype).at[indices[0], indices[1]].add(values)
        return jnp.fft.ifft2(spectrum).real

    def on_accelerator(backend: Backend, values: Array, indices: Array) -> Array:
        by_xla = backend.has_transforms
        return by_transform(values, indices) if by_xla else _sum_of_waves(values, indices, shape)

    delta = by_platform(by_transform, on_accelerator, exact, jnp.asarray(indices))
    return Dense(delta.astype(values.dtype))


def _sum_of_waves(
    values: Float[Array, " n"], indices: Int[Array, "2 n"], shape: tuple[int, int]
) -> Float[Array, "out in"]:
    """Computes Δ by a loop over runs of coefficients."""
    more = -values.shape[0] % _RUN
    runs = jnp.pad(values, (0, more)).reshape(-1, _RUN)
    places = jnp.pad(indices, ((0, 0), (0, more))).reshape(2, -1, _RUN)

    # A gradient computes the waves again instead of storing all of them.
    @jax.checkpoint
    def add_run(total: Array, run: tuple[Array, Array]) -> tuple[Array, None]:
        waves = _waves(*run, shape)
        return total + product(waves.b, waves.a), None

    zeros = carry(jnp.zeros(shape, values.dtype), values, indices)
    return jax.lax.scan(add_run, zeros, (runs, jnp.moveaxis(places, 1, 0)))[0]


def _waves(values: Array, indices: Array, shape: tuple[int, int]) -> LowRank:
    """Computes Δ as a low rank with ``cos(α + β) = cos α cos β − sin α sin β``."""
    exact = np.promote_types(values.dtype, np.float32)
    rows, cols = (_angles(jnp.asarray(i), n, exact) for i, n in zip(indices, shape, strict=True))
    heights = jnp.concatenate([values, -values]) / math.prod(shape)
    # The sine is a cosine, a quarter of a turn later: one function compiles faster than two.
    left, right = (
        jnp.cos(jnp.concatenate([angles, angles - math.pi / 2])).astype(values.dtype)
        for angles in (rows, cols)
    )
    return LowRank((heights[:, None] * left).T, right)


def _angles(frequencies: Array, size: int, dtype: np.dtype) -> Array:
    """Returns the angles ``2π·i·p/size`` at all positions p (n, size).

    They are reduced modulo 2π with integers, since cosines of large angles lose precision. The
    product i·p is computed in two steps, each of which fits 32 bits.
    """
    step = math.isqrt(size) + 1
    positions = np.arange(size, dtype=np.int32)
    i = frequencies.astype(jnp.int32)[:, None]
    steps = (i * step % size * (positions // step)[None] + i * (positions % step)[None]) % size
    return steps.astype(dtype) * (2 * math.pi / size)
