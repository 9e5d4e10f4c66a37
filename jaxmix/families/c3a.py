"""C3A: a grid of circulant blocks."""

from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

from jaxtyping import Array, Float

from jaxmix.affine import AffineMap, Base, shift
from jaxmix.families.base import Update, mismatch
from jaxmix.operators import Circulant
from jaxmix.pytrees import register_dataclass

__all__ = ["C3A"]


@register_dataclass
@dataclass(frozen=True, eq=False)
class C3A(Update):
    """C3A: ``W' = W + C/in``, where C is a grid of circulant blocks.

    Entry (p, q) of block (i, j) is ``k[i, j, (q − p) mod b]``.

    Strength s: ``W' = W + s·C/in``.

    Args:
        kernels: k (out/b, in/b, b), PEFT's ``c3a_kernel``.

    Raises:
        ShapeError: Raised by `compose` if the blocks do not tile the weight.

    Example:
        >>> import jax.numpy as jnp
        >>> two = C3A(jnp.array([[[2.0, 4.0]]]))
        >>> two.weight_map(Base(None, (2, 2)), jnp.ones(())).shift.dense().tolist()
        [[1.0, 2.0], [2.0, 1.0]]

    Source: https://arxiv.org/abs/2407.19342; ``peft/tuners/c3a/layer.py``.
    """

    kernels: Float[Array, "m n b"]

    family: ClassVar[str] = "C3A"
    trained: ClassVar[tuple[str, ...]] = ("kernels",)

    def weight_map(self, base: Base, strength: Float[Array, ""]) -> AffineMap:
        """``(I, I, s·C/in)``."""
        return shift(Circulant(self.kernels).scaled(strength / base.shape[1]))

    def misfit(self, shape: tuple[int, int]) -> str | None:
        """Checks that the blocks tile the weight."""
        # A fraction never equals an axis, so blocks that do not divide the weight are reported.
        b = self.kernels.shape[2] if self.kernels.ndim == 3 else 1
        rows, cols = (Fraction(size, max(b, 1)) for size in shape)
        return mismatch({"c3a_kernel": (self.kernels, (rows, cols, "b"))}, shape)

    def size(self) -> str:
        """The block size."""
        return f"block {self.kernels.shape[2]}"
