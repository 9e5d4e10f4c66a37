"""KaSA: replaces the smallest singular values of the base by a LoRA in the form of an SVD."""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from jaxtyping import Array, Float

from jaxmix.affine import AffineMap, Base, shift
from jaxmix.families.base import Update, mismatch
from jaxmix.operators import LowRank, add
from jaxmix.operators.jacobi import smallest
from jaxmix.pytrees import register_dataclass

__all__ = ["KaSA"]


@register_dataclass
@dataclass(frozen=True, eq=False)
class KaSA(Update):
    """KaSA: ``W' = W − U S V + γ·B diag(d) A``.

    U S V holds the r smallest singular values of the base's weight W₀, regardless of earlier
    updates. PEFT subtracts it from the base, in float32, when it loads the adapter.

    Strength s: ``W' = W + s·(γ·B diag(d) A − U S V)``.

    Args:
        a: A (r, in), PEFT's ``lora_A``.
        b: B (out, r), PEFT's ``lora_B``.
        d: The trained singular values (r,), PEFT's ``lora_diag``.
        scale: γ = alpha/rank, or alpha/√rank with rslora.
        removed: ``U S`` (out, r) and V (r, in); None to compute them.

    Raises:
        ShapeError: Raised by `compose` if the factors do not fit the weight or have its full rank.

    Example:
        >>> import jax.numpy as jnp
        >>> update = KaSA(jnp.ones((1, 2)), jnp.ones((2, 1)), jnp.zeros(1), 1.0)
        >>> matrix = jnp.diag(jnp.array([3.0, 2.0]))
        >>> jnp.round(update.weight_map(Base(matrix, (2, 2)), jnp.ones(()))(matrix), 6).tolist()
        [[3.0, 0.0], [0.0, 0.0]]

    Source: https://arxiv.org/abs/2412.06071; ``peft/tuners/lora/variants.py``.
    """

    a: Float[Array, "r in"]
    b: Float[Array, "out r"]
    d: Float[Array, " r"]
    scale: Float[Array, ""] | float
    removed: tuple[Float[Array, "out r"], Float[Array, "r in"]] | None = None

    family: ClassVar[str] = "KaSA"
    trained: ClassVar[tuple[str, ...]] = ("a", "b", "d")

    @property
    def reads_base(self) -> bool:
        """Always: the map is computed from the base's weight."""
        return True

    def weight_map(self, base: Base, strength: Float[Array, ""]) -> AffineMap:
        """``(I, I, s·(γ·B diag(d) A − U S V))``."""
        weights = strength * self.scale * self.d
        added = LowRank(self.b * weights[None, :], self.a)
        return shift(add(added, self._removed(base).scaled(-strength)))

    def _removed(self, base: Base) -> LowRank:
        """Returns ``U S V``."""
        matrix = base.read("matrix")
        if self.removed is not None:
            return LowRank(*self.removed)
        # LAPACK needs at least float32.
        exact = matrix.astype(np.promote_types(matrix.dtype, np.float32))
        found = smallest(exact, self.d.shape[0])
        return LowRank(found.b.astype(matrix.dtype), found.a.astype(matrix.dtype))

    @property
    def decomposes(self) -> bool:
        """Whether U S V is still to be computed."""
        return self.removed is None

    def decomposed(self, matrix: np.ndarray) -> "KaSA":
        """Returns the update with U S V."""
        u, values, v = np.linalg.svd(matrix, full_matrices=False)
        kept = values.shape[0] - self.d.shape[0]
        return replace(self, removed=(u[:, kept:] * values[None, kept:], v[kept:]))

    def misfit(self, shape: tuple[int, int]) -> str | None:
        """Checks that B diag(d) A has the weight's sizes and less than its full rank."""
        out_size, in_size = shape
        factors = {
            "lora_A": (self.a, ("r", in_size)),
            "lora_B": (self.b, (out_size, "r")),
            "lora_diag": (self.d, ("r",)),
            "scale": (self.scale, ()),
        }
        if problem := mismatch(factors, shape):
            return problem
        if self.d.shape[0] < min(shape):
            return None
        return (
            f"lora_diag has rank {self.d.shape[0]}, expected less than {min(shape)} from weight "
            f"{shape}"
        )

    def size(self) -> str:
        """The rank."""
        return f"rank {self.d.shape[0]}"
