"""The base class of `Delta` and `Replace`, which hold a full weight, a full bias, or both."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from jaxtyping import Array, Float

from jaxmix.families.base import Update

__all__ = ["LeafUpdate"]


@dataclass(frozen=True, eq=False)
class LeafUpdate(Update):
    """An update that holds arrays with the shapes of a site's leaves; None for an unchanged leaf.

    Attributes:
        labels: What error messages call the two arrays.
    """

    weight: Float[Array, "..."] | None = None
    bias: Float[Array, " out"] | None = None

    trained: ClassVar[tuple[str, ...]] = ("weight", "bias")
    labels: ClassVar[tuple[str, str]]

    @property
    def has_weight(self) -> bool:
        """Whether the update has a weight."""
        return self.weight is not None

    @property
    def has_bias(self) -> bool:
        """Whether the update has a bias."""
        return self.bias is not None

    def with_transposed_weight(self) -> Self:
        """Returns the update with its weight transposed, if that is a matrix."""
        if self.weight is None or self.weight.ndim != 2:
            return self
        return replace(self, weight=self.weight.T)

    def misfit(self, shape: tuple[int, int]) -> str | None:
        """Checks that the arrays have the sizes of the base's leaves."""
        leaves = zip(self.labels, (self.weight, self.bias), (shape, shape[:1]), strict=True)
        for label, leaf, size in leaves:
            if leaf is not None and (leaf.shape[:1], leaf.size) != (size[:1], math.prod(size)):
                return f"{label} has shape {leaf.shape}, expected {size}"
        return None

    def size(self) -> str:
        """The leaves that the update changes."""
        return " and ".join(n for n in ("weight", "bias") if getattr(self, n) is not None)
