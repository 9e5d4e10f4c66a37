"""IA3: outputs, or inputs, are rescaled one by one."""

from dataclasses import dataclass, field
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmix.affine import AffineMap, Base, identity
from jaxmix.families.base import Update
from jaxmix.operators import Diagonal, Identity, Zero

__all__ = ["IA3"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class IA3(Update):
    """IA3: ``W' = diag(l) W`` and ``b' = l ⊙ b``; on a feed-forward layer ``W' = W diag(l)``.

    A convolution's inputs are its channels, each for all points of the kernel. One in groups has
    several channels for a column of W, so that no single l scales it: its inputs do not fit.

    Strength s goes along the line: ``W' = diag(1 − s + s·l) W``.

    Args:
        vector: l (out,), or (in,) of the inputs; PEFT's ``ia3_l`` without its axes of length one.
        on_input: whether inputs are rescaled: PEFT's ``feedforward_modules``. The bias then stays.
        axes: how many spatial axes the convolution has, 0 for none; what `export` needs.
        transposed: whether PyTorch stores the weight as (in, out); None if unknown.

    Raises:
        ShapeError: by `compose`, where l is not as long as the weight's side.

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
    def turns_bias(self) -> bool:
        """Where outputs are rescaled."""
        return not self.on_input

    def weight_map(self, base: Base, strength: Float[Array, ""]) -> AffineMap:
        """``(diag(1 − s + s·l), I, 0)``, or that on the right."""
        (out_size, in_size), line = base.shape, self._line(strength)
        if not self.on_input:
            return AffineMap(Diagonal(line), Identity(in_size), Zero(*base.shape))
        columns = jnp.repeat(line, in_size // max(1, len(line)))
        return AffineMap(Identity(out_size), Diagonal(columns), Zero(*base.shape))

    def bias_map(self, base: Base, strength: Float[Array, ""]) -> AffineMap:
        """``(diag(1 − s + s·l), 1, 0)``; the identity on a feed-forward layer."""
        if self.on_input:
            return identity((base.shape[0], 1))
        return AffineMap(Diagonal(self._line(strength)), Identity(1), Zero(base.shape[0], 1))

    def _line(self, strength: Float[Array, ""]) -> Float[Array, " n"]:
        """What each output, or input, is multiplied by."""
        return 1 - strength + strength * jnp.asarray(self.vector)

    def misfit(self, shape: tuple[int, int]) -> str | None:
        """Whether l has a number for each output, or for each input."""
        out_size, in_size = shape
        found = self.vector.shape
        if not self.on_input:
            fits, wanted = found == (out_size,), f"({out_size},)"
        else:
            fits = len(found) == 1 and (found == (in_size,) or self._has_points(in_size))
            wanted = "(in / kernel,)" if self.axes else f"({in_size},)"
        return None if fits else f"ia3_l has shape {found}, expected {wanted} from weight {shape}"

    def _has_points(self, in_size: int) -> bool:
        """Whether each of a convolution's channels may have so many points."""
        return self.axes > 0 and 0 < len(self.vector) < in_size and in_size % len(self.vector) == 0

    def size(self) -> str:
        """How many factors, and of what."""
        return f"{self.vector.shape[0]} {'inputs' if self.on_input else 'outputs'}"
