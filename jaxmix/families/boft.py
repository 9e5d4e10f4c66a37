"""BOFT: the input is rotated by a butterfly of block-diagonal rotations, the output rescaled."""

from dataclasses import dataclass, field
from functools import reduce
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxmix.affine import AffineMap, Base, identity
from jaxmix.families.base import Update
from jaxmix.families.positions import as_int32, order_misfit
from jaxmix.operators import (
    BlockDiagonal,
    Dense,
    Diagonal,
    Identity,
    Operator,
    Permutation,
    Zero,
    multiply,
)
from jaxmix.operators.rotations import cayley

__all__ = ["BOFT", "butterfly"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class BOFT(Update):
    """BOFT: ``W' = r ⊙ (W Rᵀ)`` with ``R = Fₙ … F₁``; with `on_output`, ``W' = r ⊙ (R W)``.

    A factor is ``Pᵢ Dᵢ Pᵢᵀ``: a permutation and a block-diagonal. A block is the Cayley transform
    ``(I + Q)⁻¹ (I − Q)`` of ``Q = ½ (G − Gᵀ)``. The bias b₀ of the base stays; what others added to
    it is rescaled: ``b' = b₀ + r ⊙ (b − b₀)``.

    Strength s scales Q, and r interpolates linearly: ``1 − s + s·r``.

    Args:
        generator: G (factors, blocks, b, b), PEFT's ``boft_R``; the factor that acts on the weight
            last is last.
        rescale: r (out,), PEFT's ``boft_s`` without its axis of length one; None for none.
        orders: (factors, n), where each row of ``Pᵢ x`` comes from, as `butterfly` makes them; None
            for no permutations.
        on_output: Whether the output is rotated, as LyCORIS does, and not the input.
        convolution: Whether the site is a convolution; what `export` needs, not the map.

    Raises:
        ShapeError: Raised by `compose` if the blocks do not make up the weight's side.

    Example:
        >>> half = BOFT(jnp.array([[[[0.0, -2.0], [0.0, 0.0]]]]), jnp.array([10.0]))
        >>> turned = half.weight_map(Base(None, (1, 2)), jnp.ones(()))(jnp.array([[3.0, 5.0]]))
        >>> jnp.round(turned, 4).tolist()
        [[50.0, -30.0]]

    Source: https://arxiv.org/abs/2311.06243; ``peft/tuners/boft/layer.py``.
    """

    generator: Float[Array, "factors blocks b b"]
    rescale: Float[Array, " out"] | None = None
    orders: Int[Array, "factors n"] | None = None
    on_output: bool = field(default=False, metadata={"static": True})
    convolution: bool = field(default=False, metadata={"static": True})

    family: ClassVar[str] = "BOFT"
    trained: ClassVar[tuple[str, ...]] = ("generator", "rescale")

    @property
    def reads_base(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The bias's map does, where it rescales what others added."""
        return self.rescale is not None

    def weight_map(self, base: Base, strength: Float[Array, ""]) -> AffineMap:
        """``(diag(r), R, 0)``, or ``(diag(r) R, I, 0)``."""
        (out_size, in_size), turn = base.shape, self.rotation(strength)
        left = Identity(out_size) if self.rescale is None else Diagonal(self._line(strength))
        if self.on_output:
            return AffineMap(multiply(left, turn), Identity(in_size), Zero(*base.shape))
        return AffineMap(left, turn, Zero(*base.shape))

    def bias_map(self, base: Base, strength: Float[Array, ""]) -> AffineMap:
        """``(diag(r), 1, (1 − r) ⊙ b₀)``."""
        if self.rescale is None:
            return identity((base.shape[0], 1))
        line = self._line(strength)
        kept = Dense((1 - line)[:, None] * base.read("bias"))
        return AffineMap(Diagonal(line), Identity(1), kept)

    def rotation(self, strength: Float[Array, ""]) -> Operator:
        """R, at a strength."""
        g = jnp.asarray(self.generator)
        q = strength * (g - jnp.swapaxes(g, 2, 3)) / 2
        blocks = cayley(q.reshape(-1, *q.shape[2:])).reshape(q.shape)
        turns: list[Operator] = [BlockDiagonal(one, 1) for one in blocks]
        if self.orders is not None:
            moves = [Permutation(order) for order in as_int32(self.orders)]
            turns = [multiply(multiply(p, d), p.T) for p, d in zip(moves, turns, strict=True)]
        return reduce(lambda before, after: multiply(after, before), turns)

    def _line(self, strength: Float[Array, ""]) -> Float[Array, " out"]:
        """r, at a strength."""
        return 1 - strength + strength * jnp.asarray(self.rescale)

    def misfit(self, shape: tuple[int, int]) -> str | None:
        """Checks that the blocks make up the side that is turned, and r the outputs."""
        found, turned = self.generator.shape, shape[0 if self.on_output else 1]
        if len(found) != 4 or found[2] != found[3]:
            return f"boft_R has shape {found}, expected (factors, blocks, b, b)"
        if found[1] * found[2] != turned:
            made = f"{found[1]} blocks of {found[2]} rotate {found[1] * found[2]}"
            return f"boft_R {found}: {made}, expected {turned} from weight {shape}"
        if self.orders is not None and self.orders.shape != (found[0], turned):
            return f"orders have shape {self.orders.shape}, expected {(found[0], turned)}"
        if self.orders is not None and (problem := order_misfit("orders", self.orders)):
            return problem
        if self.rescale is not None and self.rescale.shape != shape[:1]:
            return f"boft_s has shape {self.rescale.shape}, expected {shape[:1]}"
        return None

    def size(self) -> str:
        """The size of its blocks, and how many factors there are."""
        factors = self.generator.shape[0]
        return f"block {self.generator.shape[3]}" + (f" × {factors}" if factors > 1 else "")


def butterfly(factors: int, blocks: int, size: int) -> np.ndarray:
    """The permutations of PEFT's butterfly: factor i joins runs of 2ⁱ blocks.

    Within a run the halves of blocks are sorted, the even ones before the odd ones, so that a
    block's two halves come from two blocks of the factor before. The first factor has none.

    Args:
        factors: How many factors there are.
        blocks: How many blocks each has.
        size: The size b of a block, even where there is more than one factor.

    Returns:
        The orders (factors, blocks·size).

    Example:
        >>> butterfly(2, 2, 2).tolist()
        [[0, 1, 2, 3], [0, 2, 1, 3]]
    """
    places = np.arange(blocks * size, dtype=np.int32)
    orders = [places]
    for i in range(1, factors):
        halves = places.reshape(blocks // 2**i, 2**i, 2, size // 2)
        orders.append(halves.transpose(0, 2, 1, 3).reshape(-1))
    return np.stack(orders)
