"""OFT: blocks of the input are rotated."""

from dataclasses import dataclass, field
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmix.affine import AffineMap, Base
from jaxmix.families.base import Update
from jaxmix.operators import BlockDiagonal, Identity, Zero

__all__ = ["OFT"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class OFT(Update):
    """OFT: ``W' = W Rᵀ``, with R block-diagonal; the input x becomes ``x R``.

    A block R is made of the skew matrix Q whose upper triangle is ``generator``: by the Cayley
    transform ``(I + Q)⁻¹ (I − Q)``, or by n terms of the series that PEFT uses for
    ``(I + Q)(I − Q)⁻¹``, ``I + 2Q + 2Q² + … + 2Qⁿ⁻² + Qⁿ⁻¹``: the *inverse* rotation for the same
    numbers, and orthogonal only for small Q. An embedding is ``E R``.

    Strength s scales Q: ``R(s) = cayley(s·Q)``.

    Args:
        generator: (blocks, b(b − 1)/2), PEFT's ``oft_R.weight``; one block if it is shared.
        terms: how many terms the series has; None for the exact Cayley transform.
        eps: with ``coft`` a block of Q is shrunk to the Frobenius norm eps/√blocks if its own is
            larger; None without. PEFT rounds this bound to float32.
        embedding: whether the site is an embedding.
        transposed: whether PyTorch stores the weight as (in, out).

    Raises:
        ShapeError: by `compose`, where the blocks do not make up the weight's input side.

    Example:
        >>> import jax.numpy as jnp
        >>> quarter = OFT(jnp.full((1, 1), -1.0))
        >>> turned = quarter.weight_map(Base(None, (1, 2)), jnp.ones(()))(jnp.array([[1.0, 0.0]]))
        >>> jnp.round(turned).tolist()
        [[0.0, -1.0]]

    Source: https://arxiv.org/abs/2306.07280, https://arxiv.org/abs/2506.19847;
    ``peft/tuners/oft/layer.py``.
    """

    generator: Float[Array, "blocks n"]
    terms: int | None = field(default=None, metadata={"static": True})
    eps: Float[Array, ""] | float | None = None
    embedding: bool = field(default=False, metadata={"static": True})
    transposed: bool = field(default=False, metadata={"static": True})

    family: ClassVar[str] = "OFT"

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
        q = strength * self._skew()
        if self.terms is not None:
            return _series(q, self.terms)
        # LAPACK solves in float32 at the least.
        wide = q.astype(jnp.promote_types(q.dtype, jnp.float32))
        eye = jnp.eye(self.block_size, dtype=wide.dtype)[None]
        return jnp.linalg.solve(eye + wide, eye - wide).astype(q.dtype)

    def _skew(self) -> Float[Array, "blocks b b"]:
        """Q, projected if it is constrained."""
        b = self.block_size
        upper = jnp.triu_indices(b, 1)
        q = jnp.zeros((self.generator.shape[0], b, b), self.generator.dtype)
        q = q.at[:, upper[0], upper[1]].set(self.generator)
        q = q - jnp.swapaxes(q, 1, 2)
        if self.eps is None:
            return q
        norm = jnp.sqrt(jnp.sum(q * q, axis=(1, 2), keepdims=True))
        bound = self.eps / q.shape[0] ** 0.5
        # Where the norm is 0, so is the bound's work: divide by 1 and keep gradients finite.
        shrink = bound / jnp.where(norm > bound, norm, jnp.ones_like(norm))
        return jnp.where(norm > bound, q * shrink, q)

    def misfit(self, shape: tuple[int, int]) -> str | None:
        """Whether the blocks, shared or not, tile the input side."""
        if self.generator.ndim != 2:
            return f"oft_R has shape {self.generator.shape}, expected (blocks, b(b − 1)/2)"
        (blocks, numbers), b, in_size = self.generator.shape, self.block_size, shape[1]
        if b * (b - 1) // 2 != numbers:
            return f"oft_R has {numbers} numbers a block, expected b(b − 1)/2"
        if blocks * b == in_size or (blocks == 1 and in_size % b == 0):
            return None
        found = f"{blocks} blocks of {b} rotate {blocks * b} inputs"
        return f"oft_R {self.generator.shape}: {found}, expected {in_size} from weight {shape}"

    def size(self) -> str:
        """The size of its blocks."""
        return f"block {self.block_size}"


def _series(q: Array, terms: int) -> Array:
    """PEFT's Cayley-Neumann series: the last power counts once, those between twice."""
    total = jnp.broadcast_to(jnp.eye(q.shape[-1], dtype=q.dtype), q.shape)
    if terms < 2:
        return total
    total = total + 2 * q
    if terms == 2:
        return total
    power = q @ q
    total = total + 2 * power
    for _ in range(3, terms - 1):
        power = power @ q
        total = total + 2 * power
    return total + power @ q
