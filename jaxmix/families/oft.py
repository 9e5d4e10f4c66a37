"""OFT: blocks of the input are rotated."""

from dataclasses import dataclass, field
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxmix.affine import AffineMap, Base
from jaxmix.families.base import Update
from jaxmix.operators import BlockDiagonal, Identity, Zero

__all__ = ["OFT", "cayley"]


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
        transposed: whether PyTorch stores the weight as (in, out).
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
    transposed: bool = field(default=False, metadata={"static": True})
    ends_twice: bool = field(default=False, metadata={"static": True})

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
            return _twice(q, self.terms) if self.ends_twice else _series(q, self.terms)
        # LAPACK works in float32 at the least.
        return cayley(q.astype(np.promote_types(q.dtype, np.float32))).astype(q.dtype)

    def _skew(self) -> Float[Array, "blocks b b"]:
        """Q, projected if it is constrained."""
        if self.block_size == 1:
            return jnp.zeros((self.generator.shape[0], 1, 1), self.generator.dtype)
        sign, number = _triangle(self.block_size)
        q = self.generator[:, number] * jnp.asarray(sign, self.generator.dtype)[None]
        if self.eps is None:
            return q
        square = jnp.sum(q * q, axis=(1, 2), keepdims=True)
        bound = self.eps / q.shape[0] ** 0.5
        # Compared as squares: the root's slope at Q = 0, where training starts, is infinite.
        is_far = square > bound**2
        root = jnp.sqrt(jnp.where(is_far, square, jnp.ones_like(square)))
        return jnp.where(is_far, q * (bound / root), q)

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


def _triangle(size: int) -> tuple[np.ndarray, np.ndarray]:
    """For each entry of a skew matrix its sign, and which number of the upper triangle it is."""
    sign, number = np.zeros((size, size)), np.zeros((size, size), np.int32)
    upper = np.triu_indices(size, 1)
    sign[upper], number[upper] = 1, np.arange(len(upper[0]))
    return sign - sign.T, number + number.T


def cayley(q: Array) -> Array:
    """``(I + Q)⁻¹ (I − Q) = 2 (I − Q²)⁻¹ (I − Q) − I`` of skew blocks.

    ``I − Q²`` is symmetric and at least I, so Cholesky's factors serve. They compile and run in a
    part of the time that pivoting takes, at the cost of digits where Q is far beyond 1.
    """
    eye = jnp.eye(q.shape[-1], dtype=q.dtype)[None]
    factor = jax.lax.linalg.cholesky(eye - q @ q, symmetrize_input=False)
    half = jax.lax.linalg.triangular_solve(factor, eye - q, left_side=True, lower=True)
    inverse = jax.lax.linalg.triangular_solve(
        factor, half, left_side=True, lower=True, transpose_a=True
    )
    return 2 * inverse - eye


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


def _twice(q: Array, terms: int) -> Array:
    """The series of peft 0.16 and 0.17: every power counts twice."""
    total = power = jnp.broadcast_to(jnp.eye(q.shape[-1], dtype=q.dtype), q.shape)
    for _ in range(1, terms):
        power = power @ q
        total = total + 2 * power
    return total
