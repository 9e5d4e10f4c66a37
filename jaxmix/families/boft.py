"""BOFT: rotates the input by a butterfly of block-diagonal rotations and rescales the output."""

from dataclasses import dataclass, field
from functools import reduce
from itertools import pairwise
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxmix.affine import AffineMap, Base, identity
from jaxmix.families.base import Source, Update
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
from jaxmix.operators.rotations import blocks_side_by_side, cayley, stacked_blocks
from jaxmix.pytrees import register_dataclass

__all__ = ["BOFT", "butterfly"]


@register_dataclass
@dataclass(frozen=True, eq=False)
class BOFT(Update):
    """BOFT: ``W' = r ⊙ (W Rᵀ)`` with ``R = Fₙ … F₁``; with `on_output`, ``W' = r ⊙ (R W)``.

    A factor ``Fᵢ = Pᵢ Dᵢ Pᵢᵀ`` is a block-diagonal matrix between a permutation and its inverse.
    Its blocks are the Cayley transforms ``(I + Q)⁻¹ (I − Q)`` of ``Q = ½ (G − Gᵀ)``. The base's
    bias b₀ is unchanged; what other updates added to it is rescaled: ``b' = b₀ + r ⊙ (b − b₀)``.

    Strength s scales Q and interpolates r linearly: ``1 − s + s·r``.

    Args:
        generator: G (factors, blocks, b, b), PEFT's ``boft_R``, in order of application.
        rescale: r (out,), PEFT's ``boft_s`` without its axis of length one; None if absent.
        orders: The source index of each row of ``Pᵢ x`` (factors, n), as `butterfly` makes them;
            None for no permutations.
        on_output: Whether to rotate the output, as LyCORIS does, instead of the input.
        convolution: Whether the site is a convolution; `export` needs it, the map does not.

    Raises:
        ShapeError: Raised by `compose` if the blocks do not cover the rotated side of the weight.

    Example:
        >>> half = BOFT(jnp.array([[[[0.0, -2.0], [0.0, 0.0]]]]), jnp.array([10.0]))
        >>> rotated = half.weight_map(Base(None, (1, 2)), jnp.ones(()))(jnp.array([[3.0, 5.0]]))
        >>> jnp.round(rotated, 4).tolist()
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
    def reads_base(self) -> bool:
        """The bias map does if it rescales what other updates added."""
        return self.rescale is not None

    def weight_map(self, base: Base, strength: Float[Array, ""]) -> AffineMap:
        """``(diag(r), R, 0)``, or ``(diag(r) R, I, 0)``."""
        (out_size, in_size), held = base.shape, base.precomputed
        rotation = self._product(self._blocks(strength) if held is None else stacked_blocks(held))
        left = Identity(out_size) if self.rescale is None else Diagonal(self._rescaling(strength))
        if self.on_output:
            return AffineMap(multiply(left, rotation), Identity(in_size), Zero(*base.shape))
        return AffineMap(left, rotation, Zero(*base.shape))

    def bias_map(self, base: Base, strength: Float[Array, ""]) -> AffineMap:
        """``(diag(r), 1, (1 − r) ⊙ b₀)``."""
        if self.rescale is None:
            return identity((base.shape[0], 1))
        rescaling = self._rescaling(strength)
        kept = Dense((1 - rescaling)[:, None] * base.read("bias"))
        return AffineMap(Diagonal(rescaling), Identity(1), kept)

    @property
    def precomputed_from(self) -> tuple[Source, ...]:
        """The rotations depend on the strength."""
        return ("strength",)

    def precompute(self, base: Base, strength: Float[Array, ""]) -> Float[Array, "b fkb"]:
        """Returns the blocks of all factors side by side."""
        return blocks_side_by_side(self._blocks(strength))

    def _blocks(self, strength: Float[Array, ""]) -> Float[Array, "fk b b"]:
        """Returns the blocks of all factors at a strength."""
        g = jnp.asarray(self.generator)
        q = strength * (g - jnp.swapaxes(g, 2, 3)) / 2
        return cayley(q.reshape(-1, *q.shape[2:]))

    def _product(self, blocks: Float[Array, "fk b b"]) -> Operator:
        """Returns the butterfly of these blocks."""
        by_factor = blocks.reshape(self.generator.shape)
        factors: list[Operator] = [BlockDiagonal(factor, 1) for factor in by_factor]
        if self.orders is None:
            return reduce(lambda before, after: multiply(after, before), factors)
        permutations = [Permutation(order) for order in as_int32(self.orders)]
        # Between two factors, the inverse of a permutation and the next one are one permutation.
        between = [multiply(after.T, before) for before, after in pairwise(permutations)]
        steps = zip(factors, [permutations[0].T, *between], strict=True)
        turned = [multiply(factor, permutation) for factor, permutation in steps]
        return multiply(permutations[-1], reduce(lambda x, y: multiply(y, x), turned))

    def _rescaling(self, strength: Float[Array, ""]) -> Float[Array, " out"]:
        """Returns r at a strength."""
        return 1 - strength + strength * jnp.asarray(self.rescale)

    def misfit(self, shape: tuple[int, int]) -> str | None:
        """Checks that the blocks cover the rotated side and that r has the outputs."""
        found, rotated = self.generator.shape, shape[0 if self.on_output else 1]
        if len(found) != 4 or found[2] != found[3]:
            return f"boft_R has shape {found}, expected (factors, blocks, b, b)"
        if found[1] * found[2] != rotated:
            blocks = f"{found[1]} blocks of size {found[2]} rotate {found[1] * found[2]}"
            return f"boft_R {found}: {blocks}, expected {rotated} from weight {shape}"
        if self.orders is not None and self.orders.shape != (found[0], rotated):
            return f"orders has shape {self.orders.shape}, expected {(found[0], rotated)}"
        if self.orders is not None and (problem := order_misfit("orders", self.orders)):
            return problem
        if self.rescale is not None and self.rescale.shape != shape[:1]:
            return f"boft_s has shape {self.rescale.shape}, expected {shape[:1]}"
        return None

    def size(self) -> str:
        """The block size and the number of factors."""
        factors = self.generator.shape[0]
        return f"block {self.generator.shape[3]}" + (f" × {factors}" if factors > 1 else "")


def butterfly(factors: int, blocks: int, size: int) -> np.ndarray:
    """Returns the permutations of PEFT's butterfly: factor i mixes groups of 2ⁱ blocks.

    Within a group, all first halves of blocks come before all second halves. So the two halves of
    each block come from two different blocks of the previous factor. The first factor's permutation
    is the identity.

    Args:
        factors: The number of factors.
        blocks: The number of blocks of each factor.
        size: The block size b, which must be even if there are several factors.

    Returns:
        The source index of each row, for each factor (factors, blocks·size).

    Example:
        >>> butterfly(2, 2, 2).tolist()
        [[0, 1, 2, 3], [0, 2, 1, 3]]
    """
    positions = np.arange(blocks * size, dtype=np.int32)
    orders = [positions]
    for i in range(1, factors):
        halves = positions.reshape(blocks // 2**i, 2**i, 2, size // 2)
        orders.append(halves.transpose(0, 2, 1, 3).reshape(-1))
    return np.stack(orders)
