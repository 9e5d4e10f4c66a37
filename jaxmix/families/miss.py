"""MiSS: adds one small block to every part of the weight."""

import math
from dataclasses import dataclass, field
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmix.affine import AffineMap, Base, shift
from jaxmix.families.base import Update
from jaxmix.operators import Dense, Kronecker, Operator
from jaxmix.pytrees import register_dataclass

__all__ = ["MiSS"]


@register_dataclass
@dataclass(frozen=True, eq=False)
class MiSS(Update):
    """MiSS: ``W'[o, i] = W[o, i] + m[i mod r, o mod q]``; with `bat`, ``W' = W + W₀ ⊗ M + M``.

    The block m (r, q) is repeated over W and cropped at the end if r does not divide the inputs; q
    is the number of outputs, or a divisor of it (PEFT's ``mini``). *Bat*, formerly called Bone, has
    an M (r, r) for every r outputs. It adds ``W₀ M + M`` to each block (r, r) of these outputs, so
    it reads the base's weight W₀.

    Strength s: ``W + s·Δ``.

    Args:
        block: m (r, q), or M (out/r, r, r) with `bat`; PEFT's ``miss_block``.
        bat: Whether to use the *bat* form.

    Raises:
        ShapeError: Raised by `compose` if the blocks do not tile the weight.

    Example:
        >>> update = MiSS(jnp.array([[1.0, 2.0]]))
        >>> update.weight_map(Base(None, (2, 3)), jnp.ones(()))(jnp.zeros((2, 3))).tolist()
        [[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]]

    Source: https://arxiv.org/abs/2409.15371; ``peft/tuners/miss/layer.py``.
    """

    block: Float[Array, "..."]
    bat: bool = field(default=False, metadata={"static": True})

    family: ClassVar[str] = "MiSS"
    trained: ClassVar[tuple[str, ...]] = ("block",)

    @property
    def reads_base(self) -> bool:
        """Whether it is the *bat* form."""
        return self.bat

    def weight_map(self, base: Base, strength: Float[Array, ""]) -> AffineMap:
        """``(I, I, s·Δ)``."""
        block = strength * jnp.asarray(self.block)
        return shift(self._bat_delta(block, base) if self.bat else _repeated(block, base.shape))

    def _bat_delta(self, block: Float[Array, "k r r"], base: Base) -> Dense:
        """Returns ``W₀ M + M`` for each block (r, r) of W₀."""
        (count, r, _), (out_size, in_size) = block.shape, base.shape
        w = base.read("matrix").reshape(count, r, in_size // r, r)
        delta = jnp.einsum("kacb,kbd->kacd", w, block) + block[:, :, None]
        return Dense(delta.reshape(out_size, in_size))

    def misfit(self, shape: tuple[int, int]) -> str | None:
        """Checks that the blocks tile the weight."""
        found, (out_size, in_size) = self.block.shape, shape
        if self.bat:
            fits = len(found) == 3 and math.prod(found[:2]) == out_size and found[1] == found[2]
            fits = fits and in_size % found[2] == 0
            expected = "(out/r, r, r) with an r that divides out and in"
        else:
            fits = len(found) == 2 and 0 < found[0] <= in_size and 0 < found[1]
            fits = fits and out_size % found[1] == 0
            expected = "(r, q) with r at most in and a q that divides out"
        if fits:
            return None
        return f"miss_block has shape {found}, expected {expected} from weight {shape}"

    def size(self) -> str:
        """The rank of the block, and whether it is the *bat* form."""
        return f"rank {self.block.shape[-1] if self.bat else self.block.shape[0]}" + (
            " bat" if self.bat else ""
        )


def _repeated(block: Float[Array, "r q"], shape: tuple[int, int]) -> Operator:
    """Repeats the block's transpose to cover the weight, and crops the last one."""
    (r, q), (out_size, in_size) = block.shape, shape
    ones = jnp.ones((out_size // q, -(-in_size // r)), block.dtype)
    repeated = Kronecker(ones, block.T)
    return repeated if repeated.shape == shape else repeated.cols(slice(0, in_size))
