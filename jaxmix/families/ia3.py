"""IA3: rescales each output or each input."""

from dataclasses import dataclass, field
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmix.affine import AffineMap, Base, identity
from jaxmix.families.base import Update
from jaxmix.operators import Diagonal, Identity, Zero
from jaxmix.pytrees import register_dataclass

__all__ = ["IA3"]


@register_dataclass
@dataclass(frozen=True, eq=False)
class IA3(Update):
    """IA3: ``W' = diag(l) W`` and ``b' = l ⊙ b``; on a feed-forward layer ``W' = W diag(l)``.

    A convolution's inputs are its channels; l has one entry per channel for all points of the
    kernel. In a grouped convolution each column of W belongs to several channels, so its inputs
    cannot be rescaled.

    Strength s interpolates linearly: ``W' = diag(1 − s + s·l) W``.

    Args:
        vector: l (out,), or (in,) for inputs; PEFT's ``ia3_l`` without its axes of length one.
        on_input: Whether to rescale inputs, PEFT's ``feedforward_modules``. The bias is then
            unchanged.
        axes: The number of the convolution's spatial axes, 0 for a linear layer.
        transposed: Whether PyTorch stores the weight as (in, out); None if unknown.

    Raises:
        ShapeError: Raised by `compose` if l does not have the size of the rescaled side.

    Example:
        >>> triple = IA3(jnp.array([3.0])).weight_map(Base(None, (1, 2)), jnp.asarray(0.5))
        >>> triple(jnp.ones((1, 2))).tolist()
        [[2.0, 2.0]]

    Source: https://arxiv.org/abs/2205.05638; ``peft/tuners/ia3/layer.py``.
    """

    vector: Float[Array, " n"]
    on_input: bool = field(default=False, metadata={"static": True})
    axes: int = field(default=0, metadata={"static": True})
    transposed: bool | None = field(default=False, metadata={"static": True})

    family: ClassVar[str] = "IA3"
    trained: ClassVar[tuple[str, ...]] = ("vector",)

    @property
    def maps_bias(self) -> bool:
        """Whether outputs are rescaled."""
        return not self.on_input

    def weight_map(self, base: Base, strength: Float[Array, ""]) -> AffineMap:
        """``(diag(1 − s + s·l), I, 0)``, or ``(I, diag(1 − s + s·l), 0)`` on inputs."""
        (out_size, in_size), rescaling = base.shape, self._rescaling(strength)
        if not self.on_input:
            return AffineMap(Diagonal(rescaling), Identity(in_size), Zero(*base.shape))
        columns = jnp.repeat(rescaling, in_size // max(1, len(rescaling)))
        return AffineMap(Identity(out_size), Diagonal(columns), Zero(*base.shape))

    def bias_map(self, base: Base, strength: Float[Array, ""]) -> AffineMap:
        """``(diag(1 − s + s·l), 1, 0)``; the identity on a feed-forward layer."""
        if self.on_input:
            return identity((base.shape[0], 1))
        return AffineMap(Diagonal(self._rescaling(strength)), Identity(1), Zero(base.shape[0], 1))

    def _rescaling(self, strength: Float[Array, ""]) -> Float[Array, " n"]:
        """Returns the factor of each output or input at a strength."""
        return 1 - strength + strength * jnp.asarray(self.vector)

    def misfit(self, shape: tuple[int, int]) -> str | None:
        """Checks that l has an entry for each output or for each input."""
        out_size, in_size = shape
        found = self.vector.shape
        if not self.on_input:
            fits, expected = found == (out_size,), f"({out_size},)"
        else:
            fits = len(found) == 1 and (found == (in_size,) or self._divides(in_size))
            expected = "(in / kernel,)" if self.axes else f"({in_size},)"
        return None if fits else f"ia3_l has shape {found}, expected {expected} from weight {shape}"

    def _divides(self, in_size: int) -> bool:
        """Whether the inputs of a convolution divide evenly among the channels of l."""
        return self.axes > 0 and 0 < len(self.vector) < in_size and in_size % len(self.vector) == 0

    def size(self) -> str:
        """The number of rescaled outputs or inputs."""
        return f"{self.vector.shape[0]} {'inputs' if self.on_input else 'outputs'}"
