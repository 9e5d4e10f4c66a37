"""RoAd: outputs are rotated two by two."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxmix.affine import AffineMap, Base
from jaxmix.families.base import Update
from jaxmix.operators import BlockDiagonal, Identity, Operator, Permutation, Zero, multiply

__all__ = ["RoAd"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class RoAd(Update):
    """RoAd: ``W' = R W`` and ``b' = R b``, with R made of 2 × 2 blocks.

    Within each group of outputs the i-th of the first half and the i-th of the second half make a
    pair, and become ``c₁x₁ − s₁x₂`` and ``s₂x₁ + c₂x₂`` with ``c = α cos θ`` and ``s = α sin θ``.
    Variant 1 has one θ and α a pair, variant 2 one an output, variant 4 one for each c and one for
    each s.

    Strength s scales θ, and α interpolates linearly: ``1 − s + s·α``.

    Args:
        theta: θ (m,), PEFT's ``road_theta``: out/2, out or 2·out numbers by variant.
        alpha: α (m,), PEFT's ``road_alpha``.
        variant: 1, 2 or 4, PEFT's ``road_1`` and so on.
        group: How many outputs make a group, PEFT's ``group_size``.

    Raises:
        ShapeError: Raised by `compose` if there are not so many angles as outputs need.

    Example:
        >>> quarter = RoAd(jnp.array([jnp.pi / 2]), jnp.array([2.0]), 1, 2)
        >>> turned = quarter.weight_map(Base(None, (2, 1)), jnp.ones(()))(jnp.array([[1.0], [3.0]]))
        >>> jnp.round(turned, 4).tolist()
        [[-6.0], [2.0]]

    Source: https://arxiv.org/abs/2409.00119; ``peft/tuners/road/layer.py``.
    """

    theta: Float[Array, " m"]
    alpha: Float[Array, " m"]
    variant: Literal[1, 2, 4] = field(default=1, metadata={"static": True})
    group: int = field(default=64, metadata={"static": True})

    family: ClassVar[str] = "RoAd"
    trained: ClassVar[tuple[str, ...]] = ("theta", "alpha")

    @property
    def maps_bias(self) -> bool:
        """It does."""
        return True

    def weight_map(self, base: Base, strength: Float[Array, ""]) -> AffineMap:
        """``(R, I, 0)``."""
        return AffineMap(self.turn(strength), Identity(base.shape[1]), Zero(*base.shape))

    def bias_map(self, base: Base, strength: Float[Array, ""]) -> AffineMap:
        """``(R, 1, 0)``."""
        return AffineMap(self.turn(strength), Identity(1), Zero(base.shape[0], 1))

    def turn(self, strength: Float[Array, ""]) -> Operator:
        """R, at a strength."""
        first, second = self._columns(strength)
        blocks = jnp.stack(
            [
                jnp.stack([first[:, 0], -second[:, 0]], -1),
                jnp.stack([second[:, 1], first[:, 1]], -1),
            ],
            1,
        )
        pairs = BlockDiagonal(blocks.reshape(-1, 2, 2), 1)
        if self.group == 2:
            return pairs
        together = Permutation(jnp.asarray(self._pairs(pairs.shape[0])))
        return multiply(multiply(together.T, pairs), together)

    def _columns(self, strength: Float[Array, ""]) -> tuple[Array, Array]:
        """The c and the s of each output, as pairs (pairs, 2)."""
        half = self.group // 2
        theta = strength * jnp.asarray(self.theta)
        alpha = 1 - strength + strength * jnp.asarray(self.alpha)
        cos, sin = jnp.cos, jnp.sin
        if self.variant == 4:
            theta, alpha = theta.reshape(-1, 2, 2, half), alpha.reshape(-1, 2, 2, half)
            first = alpha[:, 0] * cos(theta[:, 0])
            second = alpha[:, 1] * sin(theta[:, 1])
        else:
            theta, alpha = (x.reshape(-1, self.variant, half) for x in (theta, alpha))
            shape = (theta.shape[0], 2, half)
            first = jnp.broadcast_to(alpha * cos(theta), shape)
            second = jnp.broadcast_to(alpha * sin(theta), shape)
        # From (groups, 2, half).
        return tuple(jnp.swapaxes(x, 1, 2).reshape(-1, 2) for x in (first, second))  # pyright: ignore

    def _pairs(self, size: int) -> np.ndarray:
        """The outputs in pairs: where each comes from."""
        places = np.arange(size, dtype=np.int32).reshape(-1, 2, self.group // 2)
        return places.transpose(0, 2, 1).reshape(-1)

    def misfit(self, shape: tuple[int, int]) -> str | None:
        """Checks that groups make up the outputs, and there is an angle for each."""
        if self.group < 2 or self.group % 2 or shape[0] % self.group:
            return f"groups of {self.group} outputs, expected an even divisor of {shape[0]}"
        wanted = (shape[0] * self.variant // 2,)
        for name, found in (("road_theta", self.theta.shape), ("road_alpha", self.alpha.shape)):
            if found != wanted:
                problem = f"expected {wanted} for variant {self.variant} from weight {shape}"
                return f"{name} has shape {found}, {problem}"
        return None

    def size(self) -> str:
        """Its variant, and how many angles."""
        return f"variant {self.variant}, {self.theta.shape[0]} angles"
