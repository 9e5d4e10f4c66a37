"""AdaLoRA: LoRA in the form of an SVD, with ranks pruned at each site."""

from dataclasses import dataclass, field
from typing import ClassVar

from jaxtyping import Array, Float

from jaxmix.affine import AffineMap, Base, shift
from jaxmix.families.base import Update, mismatch
from jaxmix.operators import LowRank
from jaxmix.pytrees import register_dataclass

__all__ = ["AdaLoRA"]


@register_dataclass
@dataclass(frozen=True, eq=False)
class AdaLoRA(Update):
    """AdaLoRA: ``W' = W + γ·B diag(e) A``.

    Strength s: ``W' = W + s·γ·B diag(e) A``.

    Args:
        a: A (r, in), PEFT's ``lora_A``; a convolution's (r, in·k).
        b: B (out, r), PEFT's ``lora_B``.
        e: The singular values (r,), PEFT's ``lora_E`` without its last axis of length one.
        scale: γ = alpha/(init_r + 1e-5): PEFT divides by the rank before pruning.
        kernel: The convolution's spatial shape, () if there is none; see `for_export`.
        transposed: Whether PyTorch stores the weight as (in, out); None if unknown.

    Raises:
        ShapeError: Raised by `compose` if the factors do not fit the weight.

    Example:
        >>> import jax.numpy as jnp
        >>> two = AdaLoRA(jnp.ones((1, 2)), jnp.ones((2, 1)), jnp.full((1,), 2.0), scale=1.0)
        >>> two.weight_map(Base(None, (2, 2)), jnp.ones(())).shift.dense().tolist()
        [[2.0, 2.0], [2.0, 2.0]]

    Source: https://arxiv.org/abs/2303.10512; ``peft/tuners/adalora/layer.py``.
    """

    a: Float[Array, "r in"]
    b: Float[Array, "out r"]
    e: Float[Array, " r"]
    scale: Float[Array, ""] | float
    kernel: tuple[int, ...] = field(default=(), metadata={"static": True})
    transposed: bool | None = field(default=False, metadata={"static": True})

    family: ClassVar[str] = "AdaLoRA"
    trained: ClassVar[tuple[str, ...]] = ("a", "b", "e")
    for_export: ClassVar[tuple[str, ...]] = ("kernel",)

    def weight_map(self, base: Base, strength: Float[Array, ""]) -> AffineMap:
        """``(I, I, sγ·B diag(e) A)``."""
        weights = strength * self.scale * self.e
        return shift(LowRank(self.b * weights[None, :], self.a))

    def misfit(self, shape: tuple[int, int]) -> str | None:
        """Checks that B diag(e) A has the weight's sizes."""
        out_size, in_size = shape
        factors = {
            "lora_A": (self.a, ("r", in_size)),
            "lora_B": (self.b, (out_size, "r")),
            "lora_E": (self.e, ("r",)),
            "scale": (self.scale, ()),
        }
        return mismatch(factors, shape)

    def size(self) -> str:
        """The rank that is left after pruning."""
        return f"rank {self.e.shape[0]}"
