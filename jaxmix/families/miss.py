"""MiSS: one small block is added to every part of the weight."""

import math
from dataclasses import dataclass, field
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmix.affine import AffineMap, Base, shift
from jaxmix.families.base import Update
from jaxmix.operators import Dense, Kronecker, Operator

__all__ = ["MiSS"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class MiSS(Update):
    """MiSS: ``W'[o, i] = W[o, i] + m[i mod r, o mod q]``; with `bat`, ``W' = W + W₀ ⊗ M + M``.

    The block m (r, q) is repeated over W, the last time cut where r does not divide the inputs; q
    is the number of outputs, or less (PEFT's ``mini``). *Bat* has an M (r, r) for each r outputs,
    and adds ``W₀ M + M`` to each of their blocks (r, r): it reads the base's weight W₀. Once it was
    called Bone.

    Strength s: ``W + s·Δ``.

    Args:
        block: m (r, q), or M (out/r, r, r) with `bat`; PEFT's ``miss_block``.
        bat: Whether it is of the second form.

    Raises:
        ShapeError: Raised by `compose` if the blocks do not make up the weight.

    Example:
        >>> low = MiSS(jnp.array([[1.0, 2.0]])).weight_map(Base(None, (2, 3)), jnp.ones(()))
        >>> low(jnp.zeros((2, 3))).tolist()
        [[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]]

    Source: https://arxiv.org/abs/2409.15371; ``peft/tuners/miss/layer.py``.
    """

    block: Float[Array, "..."]
    bat: bool = field(default=False, metadata={"static": True})

    family: ClassVar[str] = "MiSS"
    trained: ClassVar[tuple[str, ...]] = ("block",)

    @property
    def reads_base(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """*Bat* does."""
        return self.bat

    def weight_map(self, base: Base, strength: Float[Array, ""]) -> AffineMap:
        """``(I, I, s·Δ)``."""
        block = strength * jnp.asarray(self.block)
        return shift(self._read(block, base) if self.bat else _repeated(block, base.shape))

    def _read(self, block: Float[Array, "k r r"], base: Base) -> Dense:
        """``W₀ M + M`` for each block (r, r) of W₀."""
        (count, r, _), (out_size, in_size) = block.shape, base.shape
        w = base.read("matrix").reshape(count, r, in_size // r, r)
        delta = jnp.einsum("kacb,kbd->kacd", w, block) + block[:, :, None]
        return Dense(delta.reshape(out_size, in_size))

    def misfit(self, shape: tuple[int, int]) -> str | None:
        """Checks that the blocks make up the weight."""
        found, (out_size, in_size) = self.block.shape, shape
        if self.bat:
            fits = len(found) == 3 and math.prod(found[:2]) == out_size and found[1] == found[2]
            fits = fits and in_size % found[2] == 0
            wanted = "(out/r, r, r) with an r that divides out and in"
        else:
            fits = len(found) == 2 and 0 < found[0] <= in_size and 0 < found[1]
            fits = fits and out_size % found[1] == 0
            wanted = "(r, q) with r up to in and q that divides out"
        return None if fits else f"miss_block has shape {found}, expected {wanted}: weight {shape}"

    def size(self) -> str:
        """The block's rank, and its form."""
        return f"rank {self.block.shape[-1] if self.bat else self.block.shape[0]}" + (
            " bat" if self.bat else ""
        )


def _repeated(block: Float[Array, "r q"], shape: tuple[int, int]) -> Operator:
    """The block's transpose as often as it takes, cut at the end."""
    (r, q), (out_size, in_size) = block.shape, shape
    ones = jnp.ones((out_size // q, -(-in_size // r)), block.dtype)
    whole = Kronecker(ones, block.T)
    return whole if whole.shape == shape else whole.cols(slice(0, in_size))
