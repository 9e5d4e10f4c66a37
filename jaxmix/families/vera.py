"""VeRA and PVeRA: two fixed projections for all sites, weighted by trained vectors at each site."""

from dataclasses import dataclass, field
from fractions import Fraction
from typing import ClassVar

from jaxtyping import Array, Float

from jaxmix.affine import AffineMap, Base, shift
from jaxmix.families.base import Update, mismatch
from jaxmix.operators import LowRank
from jaxmix.pytrees import register_dataclass

__all__ = ["PVeRA", "VeRA"]


@register_dataclass
@dataclass(frozen=True, eq=False)
class VeRA(Update):
    """VeRA: ``W' = W + diag(λ_b) B diag(λ_d) A``.

    A and B are shared by all sites and have the sizes of the largest. Each site uses the first
    ``in`` columns of A and the first ``out`` rows of B.

    Strength s: ``W' = W + s·diag(λ_b) B diag(λ_d) A``.

    Args:
        a: A (r, in or more), PEFT's ``vera_A``.
        b: B (out or more, r), PEFT's ``vera_B``.
        lambda_b: λ_b (out,), PEFT's ``vera_lambda_b``.
        lambda_d: λ_d (r,), PEFT's ``vera_lambda_d``.
        transposed: Whether PyTorch stores the weight as (in, out); None if unknown.

    Raises:
        ShapeError: Raised by `compose` if the factors do not fit the weight.

    Example:
        >>> import jax.numpy as jnp
        >>> two = VeRA(jnp.ones((1, 9)), jnp.ones((9, 1)), jnp.ones(1), jnp.full((1,), 2.0))
        >>> two.weight_map(Base(None, (1, 2)), jnp.ones(())).shift.dense().tolist()
        [[2.0, 2.0]]

    Source: https://arxiv.org/abs/2310.11454; ``peft/tuners/vera/layer.py``.
    """

    a: Float[Array, "r in_or_more"]
    b: Float[Array, "out_or_more r"]
    lambda_b: Float[Array, " out"]
    lambda_d: Float[Array, " r"]
    transposed: bool | None = field(default=False, metadata={"static": True})

    family: ClassVar[str] = "VeRA"
    trained: ClassVar[tuple[str, ...]] = ("lambda_b", "lambda_d")
    prefix: ClassVar[str] = "vera"

    def weight_map(self, base: Base, strength: Float[Array, ""]) -> AffineMap:
        """``(I, I, s·diag(λ_b) B diag(λ_d) A)``."""
        out_size, in_size = base.shape
        rank = self.b.shape[1]
        b = self.lambda_b[:, None] * self.b[:out_size]
        a = (strength * self.lambda_d)[:rank, None] * self.a[:rank, :in_size]
        return shift(LowRank(b, a))

    def misfit(self, shape: tuple[int, int]) -> str | None:
        """Checks that the projections are large enough and that the vectors fit."""
        (out_size, in_size), name = shape, self.prefix
        rows, cols = max([out_size, *self.b.shape[:1]]), max([in_size, *self.a.shape[1:2]])
        factors = {
            f"{name}_A": (self.a, ("r", cols)),
            f"{name}_lambda_d": (self.lambda_d, ("r",)),
            f"{name}_B": (self.b, (rows, self._rank())),
            f"{name}_lambda_b": (self.lambda_b, (out_size,)),
        }
        return mismatch(factors, shape)

    def _rank(self) -> str | Fraction:
        """The expected size of B's second axis, which is A's first."""
        return "r"

    def size(self) -> str:
        """The rank."""
        return f"rank {self.b.shape[1]}"


@register_dataclass
@dataclass(frozen=True, eq=False)
class PVeRA(VeRA):
    """PVeRA at inference: ``W' = W + diag(λ_b) B diag(μ) A_μ``, VeRA with half of A's rows.

    In training, PEFT draws from a normal distribution. Its mean comes from the first halves of A
    and λ_d, its variance from the second. At inference, without ``sample_at_inference``, PEFT uses
    the mean. The second halves have no effect then but are kept for further training.

    Strength s: ``W' = W + s·diag(λ_b) B diag(μ) A_μ``.

    Args:
        a: A (2r, in or more), PEFT's ``pvera_A``; A_μ is its first half.
        b: B (out or more, r), PEFT's ``pvera_B``.
        lambda_b: λ_b (out,), PEFT's ``pvera_lambda_b``.
        lambda_d: λ_d (2r,), PEFT's ``pvera_lambda_d``; μ is its first half.
        transposed: Whether PyTorch stores the weight as (in, out); None if unknown.

    Raises:
        ShapeError: Raised by `compose` if the factors do not fit the weight.

    Example:
        >>> import jax.numpy as jnp
        >>> two = PVeRA(jnp.ones((2, 9)), jnp.ones((9, 1)), jnp.ones(1), jnp.array([2.0, 7.0]))
        >>> two.weight_map(Base(None, (1, 2)), jnp.ones(())).shift.dense().tolist()
        [[2.0, 2.0]]

    Source: ``peft/tuners/pvera/layer.py``.
    """

    family: ClassVar[str] = "PVeRA"
    trained: ClassVar[tuple[str, ...]] = ("lambda_b", "lambda_d")
    prefix: ClassVar[str] = "pvera"

    def _rank(self) -> str | Fraction:
        """Half of A's first axis, as a fraction: an odd axis never fits B."""
        return Fraction(self.a.shape[0] if self.a.ndim else 0, 2)
