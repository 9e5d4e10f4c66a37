"""SHiRA: a sparse update of high rank."""

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from jaxmix.affine import AffineMap, Base, shift
from jaxmix.families.base import ExpectedShapes, Update, mismatch
from jaxmix.families.positions import as_int32
from jaxmix.operators import Sparse
from jaxmix.pytrees import register_dataclass

__all__ = ["SHiRA"]


@register_dataclass
@dataclass(frozen=True, eq=False)
class SHiRA(Update):
    """SHiRA: ``W'[i, j] = W[i, j] + v`` at the listed positions; repeated positions are summed.

    Strength s: ``W[i, j] + s·v``.

    Args:
        values: v (N,), PEFT's ``shira_weight``.
        indices: Rows and columns (2, N) int32, PEFT's ``shira_indices``.
        rank: The r of N = r·(in + out), None if unknown; `export` needs it, the map does not.

    Raises:
        ShapeError: Raised by `compose` if there are not as many positions as values, or some
            positions are outside W.

    Example:
        >>> import jax.numpy as jnp
        >>> update = SHiRA(jnp.ones(1), jnp.array([[0], [1]]))
        >>> update.weight_map(Base(None, (2, 2)), jnp.ones(())).shift.dense().tolist()
        [[0.0, 1.0], [0.0, 0.0]]

    Source: https://arxiv.org/abs/2406.13175; ``peft/tuners/shira/layer.py``.
    """

    values: Float[Array, " n"]
    indices: Int[Array, "2 n"]
    rank: int | None = field(default=None, metadata={"static": True})

    family: ClassVar[str] = "SHiRA"
    trained: ClassVar[tuple[str, ...]] = ("values",)

    def weight_map(self, base: Base, strength: Float[Array, ""]) -> AffineMap:
        """``(I, I, s·sparse)``."""
        return shift(Sparse(strength * self.values, as_int32(self.indices), *base.shape))

    def misfit(self, shape: tuple[int, int]) -> str | None:
        """Checks that there is one value per position and that the positions are inside W.

        Traced positions cannot be checked; JAX drops those outside.
        """
        factors: ExpectedShapes = {
            "shira_weight": (self.values, ("N",)),
            "shira_indices": (self.indices, (2, "N")),
        }
        if problem := mismatch(factors, shape):
            return problem
        if isinstance(self.indices, Tracer) or self.values.size == 0:
            return None
        indices = np.asarray(self.indices)
        low, high = indices.min(axis=1).tolist(), indices.max(axis=1).tolist()
        if min(low) >= 0 and high[0] < shape[0] and high[1] < shape[1]:
            return None
        rows, cols = zip(low, high, strict=True)
        return (
            f"shira_indices go from {rows[0]} to {rows[1]} and from {cols[0]} to {cols[1]}, "
            f"expected rows below {shape[0]} and columns below {shape[1]} from weight {shape}"
        )

    def size(self) -> str:
        """The number of entries."""
        return f"{self.values.shape[0]} entries"
