"""LoRA of experts: one low rank for each matrix in a stacked leaf."""

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from jaxtyping import Array, Float

from jaxmix.affine import AffineMap, Base, shift
from jaxmix.families.base import ExpectedShapes, Update, mismatch
from jaxmix.operators import StackedLowRank
from jaxmix.pytrees import register_dataclass

__all__ = ["ExpertLoRA"]


@register_dataclass
@dataclass(frozen=True, eq=False)
class ExpertLoRA(Update):
    """LoRA of a leaf of experts: ``Wₑ' = Wₑ + γ·BₑAₑ``.

    Strength s: ``Wₑ + s·γ·BₑAₑ``.

    Args:
        a: A₁ … (experts, r, in), from PEFT's ``lora_A`` (experts·r, in).
        b: B₁ … (experts, out, r), from PEFT's ``lora_B`` (out, r·experts), where the expert is the
            fastest index.
        scale: γ = alpha/rank, or alpha/√rank with rslora.
        in_first: Whether the leaf is (experts, in, out) and not (experts, out, in).

    Raises:
        ShapeError: Raised by `compose` if the factors do not fit the weight.

    Example:
        >>> import jax.numpy as jnp
        >>> two = ExpertLoRA(jnp.ones((2, 1, 3)), jnp.ones((2, 4, 1)), scale=1.0)
        >>> two.weight_map(Base(None, (2, 12)), jnp.ones(())).shift.dense().shape
        (2, 12)

    Source: ``peft/tuners/lora/layer.py`` (``ParamWrapper``; ``target_parameters``).
    """

    a: Float[Array, "experts r in"]
    b: Float[Array, "experts out r"]
    scale: Float[Array, ""] | float
    in_first: bool = field(default=False, metadata={"static": True})

    family: ClassVar[str] = "ExpertLoRA"
    trained: ClassVar[tuple[str, ...]] = ("a", "b")

    def weight_map(self, base: Base, strength: Float[Array, ""]) -> AffineMap:
        """``(I, I, sγ·BA)``, with each expert's matrix flattened to a row."""
        delta = StackedLowRank(self.b, self.a)
        if self.in_first:
            delta = StackedLowRank(self.a.swapaxes(1, 2), self.b.swapaxes(1, 2))
        return shift(delta.scaled(strength * self.scale))

    def misfit(self, shape: tuple[int, int]) -> str | None:
        """Checks that each expert's product has the weight's size."""
        factors: ExpectedShapes = {
            "lora_A": (self.a, ("experts", "r", "in")),
            "lora_B": (self.b, ("experts", "out", "r")),
            "scale": (self.scale, ()),
        }
        if self.a.ndim != 3 or self.b.ndim != 3 or np.shape(self.scale):
            return mismatch(factors, shape)
        (experts, rank, n), (_, out, _) = self.a.shape, self.b.shape
        if self.b.shape == (experts, out, rank) and shape == (experts, out * n):
            return None
        return (
            f"lora_A has shape {self.a.shape} for {experts} experts and lora_B {self.b.shape}, "
            f"expected {shape[0]} experts with out·in = {shape[1]} from weight (experts, out·in) "
            f"{shape}"
        )

    def size(self) -> str:
        """The number of experts and the rank of each."""
        return f"{self.a.shape[0]} × rank {self.a.shape[1]}"
