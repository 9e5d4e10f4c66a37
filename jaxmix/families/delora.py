"""DeLoRA: a low rank with a bounded norm, which separates its length from its direction."""

from dataclasses import dataclass, field
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmix.affine import AffineMap, Base, shift
from jaxmix.families.base import Update, mismatch
from jaxmix.operators import LowRank
from jaxmix.pytrees import register_dataclass

__all__ = ["DeLoRA"]

# PEFT's lower bound for the norm of a row of A or a column of B.
_MIN_NORM = 1e-4


@register_dataclass
@dataclass(frozen=True, eq=False)
class DeLoRA(Update):
    """DeLoRA: ``W' = W + λ/r · B diag(1 / (‖aᵢ‖ ‖bᵢ‖)) A diag(n)``.

    Each rank-one term has norm λ/r before it is scaled by n, the column norms of the base at the
    start of training, which the file contains. Norms ‖aᵢ‖ and ‖bᵢ‖ below 1e-4 count as 1e-4.

    Strength s: ``W' = W + s·λ/r · B diag(1 / (‖aᵢ‖ ‖bᵢ‖)) A diag(n)``.

    Args:
        a: A (r, in), PEFT's ``delora_A``.
        b: B (out, r), PEFT's ``delora_B``.
        bound: λ (1,), PEFT's ``delora_lambda``, which is trained.
        norms: n (in,), PEFT's ``delora_w_norm``.
        transposed: Whether PyTorch stores the weight as (in, out); None if unknown.

    Raises:
        ShapeError: Raised by `compose` if the factors do not fit the weight.

    Example:
        >>> update = DeLoRA(jnp.ones((1, 1)), jnp.full((2, 1), 7.0), jnp.ones(1), jnp.ones(1))
        >>> delta = update.weight_map(Base(None, (2, 1)), jnp.ones(())).shift.dense()
        >>> round(float(jnp.linalg.norm(delta)), 6)
        1.0

    Source: https://arxiv.org/abs/2503.18225; ``peft/tuners/delora/layer.py``.
    """

    a: Float[Array, "r in"]
    b: Float[Array, "out r"]
    bound: Float[Array, " 1"]
    norms: Float[Array, " in"]
    transposed: bool | None = field(default=False, metadata={"static": True})

    family: ClassVar[str] = "DeLoRA"
    trained: ClassVar[tuple[str, ...]] = ("a", "b", "bound")

    def weight_map(self, base: Base, strength: Float[Array, ""]) -> AffineMap:
        """``(I, I, sλ/r · B diag(1 / (‖aᵢ‖ ‖bᵢ‖)) A diag(n))``."""
        norms = _norms(self.a, 1) * _norms(self.b, 0)
        weights = strength * self.bound / self.a.shape[0] / norms
        return shift(LowRank(self.b * weights[None, :], self.a * self.norms[None, :]))

    def misfit(self, shape: tuple[int, int]) -> str | None:
        """Checks that B A and the norms have the weight's sizes."""
        out_size, in_size = shape
        factors = {
            "delora_A": (self.a, ("r", in_size)),
            "delora_B": (self.b, (out_size, "r")),
            "delora_lambda": (self.bound, (1,)),
            "delora_w_norm": (self.norms, (in_size,)),
        }
        return mismatch(factors, shape)

    def size(self) -> str:
        """The rank."""
        return f"rank {self.a.shape[0]}"


def _norms(x: Array, axis: int) -> Array:
    """Returns norms along an axis, at least 1e-4.

    The bound is applied to the squares: the gradient of the root is infinite at 0, where B starts.
    """
    return jnp.sqrt(jnp.maximum(jnp.sum(jnp.asarray(x) ** 2, axis), _MIN_NORM**2))
