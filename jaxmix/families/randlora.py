"""RandLoRA: fixed random bases shared by all sites, combined to full rank at each site."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmix.affine import AffineMap, Base, shift
from jaxmix.families.base import Update, mismatch
from jaxmix.operators import Dense, LowRank
from jaxmix.operators.backends import Backend, by_platform
from jaxmix.pytrees import register_dataclass

__all__ = ["RandLoRA"]


@register_dataclass
@dataclass(frozen=True, eq=False)
class RandLoRA(Update):
    """RandLoRA: ``W' = W + γ·Σᵢ B̃ᵢ (Λ A Γ)ᵢ``, over enough bases to reach the weight's full rank.

    Let small and large be the smaller and the larger of out and in. B, reshaped to (large, n·r), is
    multiplied with ``T[k, i, q] = λ[k, i]·A[k, q]·Γ[i, q]``, reshaped to (r·n, small). As in PEFT,
    the inner axes are paired by position: T's rows run over rank and then basis, B's columns over
    basis and then rank. If in > out, Δ is the transpose of the product. A and B are shared by all
    sites and have the sizes of the largest.

    Δ has full rank, so it is cheaper as a dense matrix than as factors.

    Strength s: ``W' = W + s·γ·Σᵢ B̃ᵢ (Λ A Γ)ᵢ``.

    Args:
        a: A (r, 1, small or more), PEFT's ``randlora_A``.
        b: B (large or more, n or more, r), PEFT's ``randlora_B``.
        weights: λ (r, n), PEFT's ``randlora_lambda``.
        gamma: Γ (n, small), PEFT's ``randlora_gamma``.
        scale: γ = alpha/r.
        transposed: Whether PyTorch stores the weight as (in, out); None if unknown.

    Raises:
        ShapeError: Raised by `compose` if the factors do not fit the weight.

    Example:
        >>> import jax.numpy as jnp
        >>> a, b, weights = jnp.ones((1, 1, 1)), jnp.ones((2, 1, 1)), jnp.full((1, 1), 3.0)
        >>> update = RandLoRA(a, b, weights, jnp.ones((1, 1)), 0.5)
        >>> update.weight_map(Base(None, (1, 2)), jnp.ones(())).shift.dense().tolist()
        [[1.5, 1.5]]

    Source: https://arxiv.org/abs/2502.00987; ``peft/tuners/randlora/layer.py``.
    """

    a: Float[Array, "r 1 small_or_more"]
    b: Float[Array, "large_or_more n_or_more r"]
    weights: Float[Array, "r n"]
    gamma: Float[Array, "n small"]
    scale: Float[Array, ""] | float
    transposed: bool | None = field(default=False, metadata={"static": True})

    family: ClassVar[str] = "RandLoRA"
    trained: ClassVar[tuple[str, ...]] = ("weights", "gamma")

    def weight_map(self, base: Base, strength: Float[Array, ""]) -> AffineMap:
        """``(I, I, sγ·Σᵢ B̃ᵢ (Λ A Γ)ᵢ)``."""
        (out_size, in_size), bases = base.shape, self.weights.shape[1]
        small, large = sorted((out_size, in_size))
        weights = strength * self.scale * self.weights
        inner = weights[:, :, None] * self.a[:, :, :small] * self.gamma[None]
        outer = self.b[:large, :bases].reshape(large, -1)
        delta = _product(outer, inner.reshape(-1, small))
        return shift(Dense(delta if small == in_size else delta.T))

    def misfit(self, shape: tuple[int, int]) -> str | None:
        """Checks that the bases are large enough and that there are as many as the rank needs."""
        small, large = sorted(shape)
        rank = self.weights.shape[0] if self.weights.ndim else 1
        bases = -(-small // max(rank, 1))
        at_least = [
            max([size, *array.shape[axis : axis + 1]])
            for array, axis, size in ((self.a, 2, small), (self.b, 0, large), (self.b, 1, bases))
        ]
        factors = {
            "randlora_lambda": (self.weights, (rank, bases)),
            "randlora_gamma": (self.gamma, (bases, small)),
            "randlora_A": (self.a, (rank, 1, at_least[0])),
            "randlora_B": (self.b, (*at_least[1:], rank)),
            "scale": (self.scale, ()),
        }
        return mismatch(factors, shape)

    def size(self) -> str:
        """The number of bases and their rank."""
        return f"{self.weights.shape[1]} bases of rank {self.weights.shape[0]}"


def _product(outer: Float[Array, "large nr"], inner: Float[Array, "nr small"]) -> Array:
    """Returns ``outer inner``.

    A TPU's compiler takes 10 s for this product at the highest precision, and 4 s if its factors
    are split.
    """
    is_exact = getattr(jax.config, "jax_default_matmul_precision", None) == "highest"

    def on_accelerator(backend: Backend, outer: Array, inner: Array) -> Array:
        if not (backend.has_split_products and is_exact):
            return outer @ inner

        # Gradients of the parts would be bfloat16 numbers.
        @jax.custom_jvp
        def split_product(outer: Array, inner: Array) -> Array:
            factors = backend.prepared(LowRank(outer, inner))
            return backend.matmul(factors.b, factors.a, outer.dtype)

        def derivative(primals: Any, tangents: Any) -> tuple[Array, Array]:
            (x, y), (dx, dy) = primals, tangents
            return split_product(x, y), dx @ y + x @ dy

        split_product.defjvp(derivative)
        return split_product(outer, inner)

    return by_platform(jnp.matmul, on_accelerator, outer, inner)
