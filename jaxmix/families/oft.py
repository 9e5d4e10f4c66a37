"""OFT: blocks of the input are rotated."""

from dataclasses import dataclass, field
from typing import ClassVar

import jax
from jaxtyping import Array, Float

from jaxmix.affine import AffineMap, Base
from jaxmix.families.base import Update, mismatch
from jaxmix.operators import BlockDiagonal, Identity, Zero
from jaxmix.operators.rotations import cayley, series, shrunk, skew, terms_problem

__all__ = ["OFT"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class OFT(Update):
    """OFT: ``W' = W Rᵀ``, with R block-diagonal; the input x becomes ``x R``.

    A block R is made of the skew matrix Q whose upper triangle is ``generator``: by the Cayley
    transform ``(I + Q)⁻¹ (I − Q)``, or by n terms of the series that PEFT uses for
    ``(I + Q)(I − Q)⁻¹``, ``I + 2Q + 2Q² + … + 2Qⁿ⁻² + Qⁿ⁻¹``: the *inverse* rotation for the same
    numbers, and orthogonal only for small Q. Before peft 0.18 the last power counted twice as well.
    An embedding is ``E R``.

    Strength s scales Q: ``R(s) = cayley(s·Q)``.

    Args:
        generator: (blocks, b(b − 1)/2), PEFT's ``oft_R.weight``; one block if it is shared.
        terms: how many terms the series has; None for the exact Cayley transform.
        eps: with ``coft`` a block of Q is shrunk to the Frobenius norm eps/√blocks if its own is
            larger; None without. PEFT rounds this bound to float32.
        embedding: whether the site is an embedding.
        transposed: whether PyTorch stores the weight as (in, out); None if unknown.
        ends_twice: whether the series' last power counts twice, ``I + 2Q + … + 2Qⁿ⁻¹``.

    Raises:
        ShapeError: by `compose`, where the blocks do not make up the weight's input side.

    Example:
        >>> import jax.numpy as jnp
        >>> quarter = OFT(jnp.full((1, 1), -1.0))
        >>> turned = quarter.weight_map(Base(None, (1, 2)), jnp.ones(()))(jnp.array([[1.0, 0.0]]))
        >>> jnp.round(turned[0, 1], 6)
        Array(-1., dtype=float32)

    Source: https://arxiv.org/abs/2306.07280, https://arxiv.org/abs/2506.19847;
    ``peft/tuners/oft/layer.py``.
    """

    generator: Float[Array, "blocks n"]
    terms: int | None = field(default=None, metadata={"static": True})
    eps: Float[Array, ""] | float | None = None
    embedding: bool = field(default=False, metadata={"static": True})
    transposed: bool | None = field(default=False, metadata={"static": True})
    ends_twice: bool = field(default=False, metadata={"static": True})

    family: ClassVar[str] = "OFT"
    trained: ClassVar[tuple[str, ...]] = ("generator",)

    @property
    def block_size(self) -> int:
        """b, of b(b − 1)/2 numbers."""
        return round((1 + (1 + 8 * self.generator.shape[1]) ** 0.5) / 2)

    def weight_map(self, base: Base, strength: Float[Array, ""]) -> AffineMap:
        """``(I, R, 0)``; an embedding's ``E R`` is ``(I, Rᵀ, 0)``."""
        out_size, in_size = base.shape
        blocks = self.rotations(strength)
        turn = BlockDiagonal(blocks, in_size // (blocks.shape[0] * self.block_size))
        right = turn.T if self.embedding else turn
        return AffineMap(Identity(out_size), right, Zero(out_size, in_size))

    def rotations(self, strength: Float[Array, ""]) -> Float[Array, "blocks b b"]:
        """The blocks of R, at a strength."""
        q = skew(self.generator)
        if self.eps is not None:
            q = shrunk(q, self.eps / q.shape[0] ** 0.5)
        q = strength * q
        return cayley(q) if self.terms is None else series(q, self.terms, self.ends_twice)

    def misfit(self, shape: tuple[int, int]) -> str | None:
        """Whether the blocks, shared or not, tile the input side."""
        if self.generator.ndim != 2:
            return f"oft_R has shape {self.generator.shape}, expected (blocks, b(b − 1)/2)"
        if said := terms_problem(self.terms):
            return said
        if said := mismatch({"eps": (self.eps, ())}, shape):
            return said
        (blocks, numbers), b, in_size = self.generator.shape, self.block_size, shape[1]
        if b * (b - 1) // 2 != numbers:
            return f"oft_R has {numbers} numbers a block, expected b(b − 1)/2"
        if blocks and (blocks * b == in_size or (blocks == 1 and in_size % b == 0)):
            return None
        found = f"{blocks} blocks of {b} rotate {blocks * b} inputs"
        return f"oft_R {self.generator.shape}: {found}, expected {in_size} from weight {shape}"

    def size(self) -> str:
        """The size of its blocks."""
        return f"block {self.block_size}"
