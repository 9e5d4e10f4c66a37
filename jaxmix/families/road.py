"""RoAd: rotates pairs of outputs."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxmix.affine import AffineMap, Base
from jaxmix.families.base import Update
from jaxmix.operators import BlockDiagonal, Identity, Operator, Permutation, Zero, multiply
from jaxmix.pytrees import register_dataclass

__all__ = ["RoAd"]


@register_dataclass
@dataclass(frozen=True, eq=False)
class RoAd(Update):
    """RoAd: ``W' = R W`` and ``b' = R b``, where R consists of 2 × 2 blocks.

    Within each group of outputs, the i-th output of the first half and the i-th of the second half
    form a pair (x₁, x₂). It becomes ``c₁x₁ − s₁x₂`` and ``s₂x₁ + c₂x₂`` with ``c = α cos θ`` and
    ``s = α sin θ``. Variant 1 has one θ and one α per pair, variant 2 one per output, and variant 4
    one for each c and each s.

    Strength s scales θ and interpolates α linearly: ``1 − s + s·α``.

    Args:
        theta: θ (m,) in radians, PEFT's ``road_theta``; m is out/2, out or 2·out, by variant.
        alpha: α (m,), PEFT's ``road_alpha``.
        variant: 1, 2 or 4, PEFT's ``road_1``, ``road_2`` or ``road_4``.
        group: The number of outputs per group, PEFT's ``group_size``.

    Raises:
        ShapeError: Raised by `compose` if the number of angles does not fit the outputs.

    Example:
        >>> quarter = RoAd(jnp.array([jnp.pi / 2]), jnp.array([2.0]), 1, 2)
        >>> rotate = quarter.weight_map(Base(None, (2, 1)), jnp.ones(()))
        >>> jnp.round(rotate(jnp.array([[1.0], [3.0]])), 4).tolist()
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
        """Always true."""
        return True

    def weight_map(self, base: Base, strength: Float[Array, ""]) -> AffineMap:
        """``(R, I, 0)``."""
        return AffineMap(self.rotation(strength), Identity(base.shape[1]), Zero(*base.shape))

    def bias_map(self, base: Base, strength: Float[Array, ""]) -> AffineMap:
        """``(R, 1, 0)``."""
        return AffineMap(self.rotation(strength), Identity(1), Zero(base.shape[0], 1))

    def rotation(self, strength: Float[Array, ""]) -> Operator:
        """Returns R at a strength."""
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
        pairing = Permutation(jnp.asarray(self._pairing(pairs.shape[0])))
        return multiply(multiply(pairing.T, pairs), pairing)

    def _columns(self, strength: Float[Array, ""]) -> tuple[Array, Array]:
        """Returns the c and the s of each output, each (pairs, 2)."""
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

    def _pairing(self, size: int) -> np.ndarray:
        """Returns the order of the outputs that places both of a pair next to each other."""
        positions = np.arange(size, dtype=np.int32).reshape(-1, 2, self.group // 2)
        return positions.transpose(0, 2, 1).reshape(-1)

    def misfit(self, shape: tuple[int, int]) -> str | None:
        """Checks that the groups divide the outputs and that there is an angle for each."""
        if self.group < 2 or self.group % 2 or shape[0] % self.group:
            return f"the group size is {self.group}, expected an even divisor of {shape[0]}"
        expected = (shape[0] * self.variant // 2,)
        for name, found in (("road_theta", self.theta.shape), ("road_alpha", self.alpha.shape)):
            if found != expected:
                return (
                    f"{name} has shape {found}, expected {expected} for variant {self.variant} "
                    f"from weight {shape}"
                )
        return None

    def size(self) -> str:
        """The variant and the number of angles."""
        return f"variant {self.variant}, {self.theta.shape[0]} angles"
