"""OFT: rotates blocks of the input."""

from dataclasses import dataclass, field
from typing import ClassVar

from jaxtyping import Array, Float

from jaxmix.affine import AffineMap, Base
from jaxmix.families.base import Source, Update, mismatch
from jaxmix.operators import BlockDiagonal, Identity, Zero
from jaxmix.operators.rotations import (
    blocks_side_by_side,
    cayley,
    cayley_neumann,
    clip_norm,
    skew_symmetric,
    stacked_blocks,
    terms_misfit,
)
from jaxmix.pytrees import register_dataclass

__all__ = ["OFT"]


@register_dataclass
@dataclass(frozen=True, eq=False)
class OFT(Update):
    """OFT: ``W' = W Rᵀ`` with a block-diagonal R; the input x becomes ``x R``.

    A block of R comes from the skew-symmetric matrix Q whose upper triangle is ``generator``. It is
    the Cayley transform ``(I + Q)⁻¹ (I − Q)``, or n terms of PEFT's series for
    ``(I + Q)(I − Q)⁻¹``, ``I + 2Q + 2Q² + … + 2Qⁿ⁻² + Qⁿ⁻¹``. For the same Q the series is the
    *inverse* rotation, and it is orthogonal only for small Q. Before peft 0.18 the last power had
    the factor 2 as well. An embedding E becomes ``E R``.

    Strength s scales Q: ``R(s) = cayley(s·Q)``.

    Args:
        generator: The upper triangles of Q (blocks, b(b − 1)/2), PEFT's ``oft_R.weight``; a single
            block if it is shared.
        terms: The number of terms of the series; None for the exact Cayley transform.
        eps: With ``coft`` each block of Q is clipped to the Frobenius norm eps/√blocks; None
            otherwise. PEFT rounds this bound to float32.
        embedding: Whether the site is an embedding.
        transposed: Whether PyTorch stores the weight as (in, out); None if unknown.
        ends_twice: Whether the last power of the series has the factor 2, ``I + 2Q + … + 2Qⁿ⁻¹``.

    Raises:
        ShapeError: Raised by `compose` if the blocks do not cover the weight's inputs.

    Example:
        >>> import jax.numpy as jnp
        >>> quarter = OFT(jnp.full((1, 1), -1.0))
        >>> rotated = quarter.weight_map(Base(None, (1, 2)), jnp.ones(()))(jnp.array([[1.0, 0.0]]))
        >>> jnp.round(rotated[0, 1], 6)
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
        """The block size b."""
        return round((1 + (1 + 8 * self.generator.shape[1]) ** 0.5) / 2)

    def weight_map(self, base: Base, strength: Float[Array, ""]) -> AffineMap:
        """``(I, R, 0)``, or ``(I, Rᵀ, 0)`` for an embedding."""
        out_size, in_size = base.shape
        held = base.precomputed
        blocks = self.rotations(strength) if held is None else stacked_blocks(held)
        rotation = BlockDiagonal(blocks, in_size // (blocks.shape[0] * self.block_size))
        right = rotation.T if self.embedding else rotation
        return AffineMap(Identity(out_size), right, Zero(out_size, in_size))

    @property
    def precomputed_from(self) -> tuple[Source, ...]:
        """The rotations depend on the strength."""
        return ("strength",)

    def precompute(self, base: Base, strength: Float[Array, ""]) -> Float[Array, "b kb"]:
        """Returns the blocks of R side by side."""
        return blocks_side_by_side(self.rotations(strength))

    def rotations(self, strength: Float[Array, ""]) -> Float[Array, "blocks b b"]:
        """Returns the blocks of R at a strength."""
        q = skew_symmetric(self.generator)
        if self.eps is not None:
            q = clip_norm(q, self.eps / q.shape[0] ** 0.5)
        q = strength * q
        return cayley(q) if self.terms is None else cayley_neumann(q, self.terms, self.ends_twice)

    def misfit(self, shape: tuple[int, int]) -> str | None:
        """Checks that the blocks, shared or not, tile the input side."""
        if self.generator.ndim != 2:
            return f"oft_R has shape {self.generator.shape}, expected (blocks, b(b − 1)/2)"
        if problem := terms_misfit(self.terms):
            return problem
        if problem := mismatch({"eps": (self.eps, ())}, shape):
            return problem
        (blocks, numbers), b, in_size = self.generator.shape, self.block_size, shape[1]
        if b * (b - 1) // 2 != numbers:
            return f"oft_R has {numbers} values per block, expected b(b − 1)/2"
        if blocks and (blocks * b == in_size or (blocks == 1 and in_size % b == 0)):
            return None
        found = f"{blocks} blocks of size {b} rotate {blocks * b} inputs"
        return f"oft_R {self.generator.shape}: {found}, expected {in_size} from weight {shape}"

    def size(self) -> str:
        """The block size."""
        return f"block {self.block_size}"
