"""Diag-OFT: rotates blocks of the output, then rescales it; also PEFT's OFT before 0.16."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmix.affine import AffineMap, Base
from jaxmix.families.base import Source, Update, mismatch
from jaxmix.operators import BlockDiagonal, Diagonal, Identity, Operator, Zero, multiply
from jaxmix.operators.rotations import blocks_side_by_side, cayley, clip_norm, stacked_blocks
from jaxmix.pytrees import register_dataclass

__all__ = ["DiagOFT"]


@register_dataclass
@dataclass(frozen=True, eq=False)
class DiagOFT(Update):
    """Diag-OFT: ``W' = r ⊙ (R W)`` rotates outputs; ``W' = r ⊙ (W Rᵀ)`` rotates inputs.

    R is block-diagonal. A block is the Cayley transform ``(I + Q)⁻¹ (I − Q)`` of the skew-symmetric
    matrix ``Q = factor · (D − Dᵀ)``. Several formats use it:

    - LyCORIS's Diag-OFT: outputs, factor 1. ``alpha`` times out bounds the norm of all blocks' Q
      taken together.
    - PEFT up to 0.13 (``oft_r``): outputs, factor −½. With ``coft`` each block's D is clipped to
      the norm eps · ⌈out / r⌉² / √blocks. Blocks that extend beyond the outputs are cropped.
    - PEFT 0.14 to 0.15 (``oft_r``, ``oft_s``): inputs, factor ½, r is ``oft_s``.
    - LyCORIS's IA3 on outputs: no blocks, r is 1 + its vector.

    The bias is unchanged. Strength s scales Q and interpolates r linearly: ``1 − s + s·r``.

    Args:
        blocks: D (k, b, b); a single block is repeated; None for no rotation.
        rescale: r (out,); None if absent.
        bound: The norm to which Q, or with `by_block` each D, is clipped; None for no bound.
        factor: The factor of D − Dᵀ.
        side: The side to rotate, "out" or "in".
        by_block: Whether the bound applies to each block's D instead of to Q as a whole.

    Raises:
        ShapeError: Raised by `compose` if the blocks do not cover the rotated side of the weight.

    Example:
        >>> half = DiagOFT(jnp.array([[[0.0, 1.0], [0.0, 0.0]]]), jnp.array([2.0, 1.0]))
        >>> rotated = half.weight_map(Base(None, (2, 1)), jnp.ones(()))(jnp.array([[3.0], [5.0]]))
        >>> jnp.round(rotated, 5).tolist()
        [[-10.0], [3.0]]

    Source: https://arxiv.org/abs/2306.07280; LyCORIS, ``lycoris/modules/diag_oft.py``; peft 0.13
    and 0.15, ``peft/tuners/oft/layer.py``.
    """

    blocks: Float[Array, "k b b"] | None = None
    rescale: Float[Array, " out"] | None = None
    bound: Float[Array, ""] | float | None = None
    factor: float = field(default=1.0, metadata={"static": True})
    side: Literal["out", "in"] = field(default="out", metadata={"static": True})
    by_block: bool = field(default=False, metadata={"static": True})

    family: ClassVar[str] = "DiagOFT"
    trained: ClassVar[tuple[str, ...]] = ("blocks", "rescale")

    def weight_map(self, base: Base, strength: Float[Array, ""]) -> AffineMap:
        """``(r R, I, 0)``, or ``(r, R, 0)``."""
        out_size, in_size = base.shape
        left: Operator = Identity(out_size)
        right: Operator = Identity(in_size)
        if self.blocks is not None:
            size = out_size if self.side == "out" else in_size
            held = base.precomputed
            blocks = self.rotations(strength) if held is None else stacked_blocks(held)
            rotation = _to_size(blocks, size)
            left, right = (rotation, right) if self.side == "out" else (left, rotation)
        if self.rescale is not None:
            rescaling = 1 - strength + strength * jnp.asarray(self.rescale)
            left = multiply(Diagonal(rescaling), left)
        return AffineMap(left, right, Zero(out_size, in_size))

    @property
    def precomputed_from(self) -> tuple[Source, ...] | None:
        """The rotations depend on the strength."""
        return None if self.blocks is None else ("strength",)

    def precompute(self, base: Base, strength: Float[Array, ""]) -> Float[Array, "b kb"]:
        """Returns the blocks of R side by side."""
        return blocks_side_by_side(self.rotations(strength))

    def rotations(self, strength: Float[Array, ""]) -> Float[Array, "k b b"]:
        """Returns the blocks of R at a strength."""
        return cayley(strength * self._skew())

    def _skew(self) -> Float[Array, "k b b"]:
        """Returns Q, clipped if there is a bound."""
        d = jnp.asarray(self.blocks)
        if self.bound is not None and self.by_block:
            d = clip_norm(d, jnp.asarray(self.bound, d.dtype))
        q = self.factor * (d - jnp.swapaxes(d, 1, 2))
        if self.bound is not None and not self.by_block:
            # All blocks share one norm.
            bound = jnp.asarray(self.bound, q.dtype)
            q = clip_norm(q.reshape(1, -1, q.shape[-1]), bound).reshape(q.shape)
        return q

    def misfit(self, shape: tuple[int, int]) -> str | None:
        """Checks that the blocks, shared or not, cover the side and that r has the outputs."""
        if self.rescale is not None and self.rescale.shape != shape[:1]:
            return f"rescale has shape {self.rescale.shape}, expected {shape[:1]} from {shape}"
        if self.blocks is None:
            return None
        if problem := mismatch({"the bound": (self.bound, ())}, shape):
            return problem
        found, size = self.blocks.shape, shape[0 if self.side == "out" else 1]
        if len(found) != 3 or found[1] != found[2] or 0 in found:
            return f"oft_blocks has shape {found}, expected (blocks, b, b)"
        count, b, _ = found
        # Only PEFT up to 0.13 lets the last block extend beyond the side.
        overhangs = self.factor < 0 and (count == 1 or b == -(-size // count))
        if count * b == size or (count == 1 and size % b == 0) or overhangs:
            return None
        described = f"{count} blocks of size {b} rotate {count * b} {self.side}puts"
        return f"oft_blocks {found}: {described}, expected {size} from weight {shape}"

    def size(self) -> str:
        """The block size, or the number of rescaled outputs."""
        if self.blocks is not None:
            return f"block {self.blocks.shape[1]}"
        return f"{0 if self.rescale is None else self.rescale.shape[0]} outputs"


def _to_size(blocks: Array, size: int) -> Operator:
    """Returns the block-diagonal matrix of this size; repeats a single block and crops the last.

    PEFT up to 0.13 rounds the block size up if it does not divide the side, and crops the result.
    """
    count, b, _ = blocks.shape
    rotation = BlockDiagonal(blocks, -(-size // b) if count == 1 else 1)
    if rotation.shape[0] == size:
        return rotation
    return rotation.rows(slice(size)).cols(slice(size))
