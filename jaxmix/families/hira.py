"""HiRA: the elementwise product of the base's weight and a low rank."""

from dataclasses import dataclass, field
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmix.affine import AffineMap, Base, shift
from jaxmix.families.base import Update, mismatch
from jaxmix.operators import Dense
from jaxmix.pytrees import register_dataclass

__all__ = ["HiRA"]


@register_dataclass
@dataclass(frozen=True, eq=False)
class HiRA(Update):
    """HiRA: ``W' = W + W₀ ⊙ BA``, where W₀ is the base's weight, regardless of earlier updates.

    Strength s: ``W' = W + s·W₀ ⊙ BA``.

    Args:
        a: A (r, in), PEFT's ``hira_A``. A convolution's is flattened to (r, in·k), an embedding's
            (W is (V, D)) is the transposed ``hira_embedding_B``, (r, D).
        b: B (out, r), PEFT's ``hira_B``; an embedding's is the transposed ``hira_embedding_A``.
        kernel: The convolution's spatial shape, () if there is none; see `for_export`.
        embedding: Whether the site is an embedding; see `for_export`.
        transposed: Whether PyTorch stores the weight as (in, out); None if unknown.

    Raises:
        ShapeError: Raised by `compose` if the factors do not fit the weight.

    Example:
        >>> two = HiRA(jnp.ones((1, 2)), jnp.full((1, 1), 2.0))
        >>> base = Base(jnp.array([[5.0, 7.0]]), (1, 2))
        >>> two.weight_map(base, jnp.ones(()))(jnp.zeros((1, 2))).tolist()
        [[10.0, 14.0]]

    Source: https://openreview.net/forum?id=TwJrTz9cRS; ``peft/tuners/hira/layer.py``.
    """

    a: Float[Array, "r in"]
    b: Float[Array, "out r"]
    kernel: tuple[int, ...] = field(default=(), metadata={"static": True})
    embedding: bool = field(default=False, metadata={"static": True})
    transposed: bool | None = field(default=False, metadata={"static": True})

    family: ClassVar[str] = "HiRA"
    trained: ClassVar[tuple[str, ...]] = ("a", "b")
    for_export: ClassVar[tuple[str, ...]] = (
        "kernel",
        "embedding",
    )

    @property
    def reads_base(self) -> bool:
        """Always: the map is computed from the base's weight."""
        return True

    def weight_map(self, base: Base, strength: Float[Array, ""]) -> AffineMap:
        """``(I, I, s·W₀ ⊙ BA)``, which is dense since W₀ has no structure."""
        product = (strength * jnp.asarray(self.b)) @ jnp.asarray(self.a)
        return shift(Dense(base.read("matrix") * product))

    def misfit(self, shape: tuple[int, int]) -> str | None:
        """Checks that B A has the weight's sizes."""
        out_size, in_size = shape
        factors = {"hira_A": (self.a, ("r", in_size)), "hira_B": (self.b, (out_size, "r"))}
        return mismatch(factors, shape)

    def size(self) -> str:
        """The rank."""
        return f"rank {self.a.shape[0]}"
