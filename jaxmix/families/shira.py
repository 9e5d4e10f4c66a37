"""SHiRA: a sparse update at high rank."""

from dataclasses import dataclass
from typing import ClassVar

import jax
from jaxtyping import Array, Float, Int

from jaxmix.affine import AffineMap, Base, shift
from jaxmix.families.base import Update
from jaxmix.operators import Sparse

__all__ = ["SHiRA"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SHiRA(Update):
    """SHiRA: ``W'[i, j] = W[i, j] + v`` at the positions listed.

    Strength s: ``W[i, j] + s·v``.

    Args:
        values: v (N,), PEFT's ``shira_weight``.
        indices: (2, N) int32, the rows and the columns, PEFT's ``shira_indices``.

    Raises:
        ShapeError: by `compose`, where values and positions differ in number.

    Example:
        >>> import jax.numpy as jnp
        >>> one = SHiRA(jnp.ones(1), jnp.array([[0], [1]]))
        >>> one.weight_map(Base(None, (2, 2)), jnp.ones(())).shift.dense().tolist()
        [[0.0, 1.0], [0.0, 0.0]]

    Source: https://arxiv.org/abs/2406.13175; ``peft/tuners/shira/layer.py``.
    """

    values: Float[Array, " n"]
    indices: Int[Array, "2 n"]

    family: ClassVar[str] = "SHiRA"

    def weight_map(self, base: Base, strength: Float[Array, ""]) -> AffineMap:
        """``(I, I, s·sparse)``."""
        return shift(Sparse(strength * self.values, self.indices, *base.shape))

    def misfit(self, shape: tuple[int, int]) -> str | None:
        """Whether there is a value a position. Positions outside W are found when a file is read."""
        if self.indices.shape == (2, *self.values.shape):
            return None
        return f"shira_indices has shape {self.indices.shape}, expected (2, {len(self.values)})"

    def size(self) -> str:
        """How many entries."""
        return f"{self.values.shape[0]} entries"
