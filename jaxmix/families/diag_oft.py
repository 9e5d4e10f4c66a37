"""Diag-OFT: blocks of the output are rotated, then rescaled; and PEFT's OFT before 0.16."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmix.affine import AffineMap, Base
from jaxmix.families.base import Update, mismatch
from jaxmix.operators import BlockDiagonal, Diagonal, Identity, Operator, Zero, multiply
from jaxmix.operators.rotations import cayley, shrunk

__all__ = ["DiagOFT"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class DiagOFT(Update):
    """Rotated and rescaled outputs: ``W' = r ⊙ (R W)``; or, inputs: ``W' = r ⊙ (W Rᵀ)``.

    R is block-diagonal. A block is the Cayley transform ``(I + Q)⁻¹ (I − Q)`` of the skew matrix
    ``Q = factor · (D − Dᵀ)``. Who writes what:

    - LyCORIS's Diag-OFT: outputs, factor 1. Its ``alpha`` times out is a bound on the norm of all
      blocks' Q taken together.
    - PEFT up to 0.13 (``oft_r``): outputs, factor −½. With ``coft`` each block's D is shrunk to
      eps · ⌈out / r⌉² / √blocks. The blocks may overhang the outputs and are cut.
    - PEFT 0.14 to 0.15 (``oft_r``, ``oft_s``): inputs, factor ½, r is ``oft_s``.
    - LyCORIS's IA3 on outputs: no blocks, r is 1 + its vector.

    The bias stays. Strength s scales Q, and r goes along the line: ``1 − s + s·r``.

    Args:
        blocks: D (k, b, b); one block that is repeated if it is shared; None for no rotation.
        rescale: r (out,); None for none.
        bound: the norm to which Q, or with `by_block` each D, is shrunk; None for no bound.
        factor: what D − Dᵀ is multiplied by.
        side: which side is rotated, "out" or "in".
        by_block: whether the bound is on each block's D.

    Raises:
        ShapeError: by `compose`, where the blocks do not make up the weight's side.

    Example:
        >>> half = DiagOFT(jnp.array([[[0.0, 1.0], [0.0, 0.0]]]), jnp.array([2.0, 1.0]))
        >>> turned = half.weight_map(Base(None, (2, 1)), jnp.ones(()))(jnp.array([[3.0], [5.0]]))
        >>> jnp.round(turned, 5).tolist()
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
            turn = _fitted(self.rotations(strength), size)
            left, right = (turn, right) if self.side == "out" else (left, turn)
        if self.rescale is not None:
            line = 1 - strength + strength * jnp.asarray(self.rescale)
            left = multiply(Diagonal(line), left)
        return AffineMap(left, right, Zero(out_size, in_size))

    def rotations(self, strength: Float[Array, ""]) -> Float[Array, "k b b"]:
        """The blocks of R, at a strength."""
        return cayley(strength * self._skew())

    def _skew(self) -> Float[Array, "k b b"]:
        """Q, shrunk if it is bounded."""
        d = jnp.asarray(self.blocks)
        if self.bound is not None and self.by_block:
            d = shrunk(d, jnp.asarray(self.bound, d.dtype))
        q = self.factor * (d - jnp.swapaxes(d, 1, 2))
        if self.bound is not None and not self.by_block:
            # All blocks as one.
            bound = jnp.asarray(self.bound, q.dtype)
            q = shrunk(q.reshape(1, -1, q.shape[-1]), bound).reshape(q.shape)
        return q

    def misfit(self, shape: tuple[int, int]) -> str | None:
        """Whether the blocks, shared or not, make up the side, and r the outputs."""
        if self.rescale is not None and self.rescale.shape != shape[:1]:
            return f"rescale has shape {self.rescale.shape}, expected {shape[:1]} from {shape}"
        if self.blocks is None:
            return None
        if said := mismatch({"the bound": (self.bound, ())}, shape):
            return said
        found, size = self.blocks.shape, shape[0 if self.side == "out" else 1]
        if len(found) != 3 or found[1] != found[2] or 0 in found:
            return f"oft_blocks has shape {found}, expected (blocks, b, b)"
        count, b, _ = found
        # PEFT up to 0.13 alone lets blocks overhang, by less than one number each.
        overhangs = self.factor < 0 and (count == 1 or b == -(-size // count))
        if count * b == size or (count == 1 and size % b == 0) or overhangs:
            return None
        said = f"{count} blocks of {b} rotate {count * b} {self.side}puts"
        return f"oft_blocks {found}: {said}, expected {size} from weight {shape}"

    def size(self) -> str:
        """The size of its blocks."""
        if self.blocks is not None:
            return f"block {self.blocks.shape[1]}"
        return f"{0 if self.rescale is None else self.rescale.shape[0]} outputs"


def _fitted(blocks: Array, size: int) -> Operator:
    """The blocks along a diagonal of this size: repeated where one is shared, cut where too many.

    PEFT up to 0.13 rounds the block's size up where it does not divide, and cuts what overhangs.
    """
    count, b, _ = blocks.shape
    turn = BlockDiagonal(blocks, -(-size // b) if count == 1 else 1)
    if turn.shape[0] == size:
        return turn
    return turn.rows(slice(size)).cols(slice(size))
