"""Forms: how a leaf holds a site's tensor, as what computes with it sees it."""

import math
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from jaxmix.affine import AffineMap
from jaxmix.placement.layout import Part, Place

__all__ = ["At", "Form", "arithmetic", "as_matrix"]

# Which layer of a stack, which expert: traced, so that one program serves all of them.
At = tuple[Any, ...]


@dataclass(frozen=True)
class Form:
    """How a leaf holds a site's tensor: what a compiled function needs to know beside the shapes.

    Args:
        part: whether it is the site's weight or its bias.
        axes: the rule's einops pattern, from leaf to PyTorch's tensor; None for none.
        index: the rule's index into the leaf; None for the whole.
        transposed: whether the tensor, of two axes, is (in, out) and not (out, in).
        sharding: the leaf's sharding over devices, which the result keeps; None for one device.
        sizes: sizes of axes that the leaf's own do not tell.
        scale: what the leaf holds is PyTorch's tensor times this.
    """

    part: Part = "weight"
    axes: str | None = None
    index: str | None = None
    transposed: bool = False
    sharding: jax.sharding.NamedSharding | None = None
    sizes: tuple[tuple[str, int], ...] = ()
    scale: float = 1.0

    @property
    def is_plain(self) -> bool:
        """Whether the leaf is a matrix, or its transpose, but for a reshape."""
        return self.axes is None and self.index is None

    @property
    def bare(self) -> "Form":
        """What maps and passes need to know of it, alike for all layers of a stack."""
        sharding = self.sharding if self.is_plain else None
        axes = None if self.is_plain else "..."
        return Form(self.part, axes, None, self.transposed, sharding, scale=self.scale)

    @property
    def _place(self) -> Place:
        return Place("", self.axes, self.index, self.sizes)

    @property
    def picked(self) -> tuple["Form", At]:
        """The form with zeros for the numbers in its index, alike for all layers; and these."""
        if self.index is None:
            return self, ()
        items = self.index.split(",")
        at = tuple(np.int32(item) for item in items if ":" not in item)
        index = ",".join(item if ":" in item else "0" for item in items)
        return replace(self, index=index), at

    def tensor(self, leaf: Array, at: At = ()) -> Array:
        """The leaf's tensor for the passes: itself if it is plain, else PyTorch's, but scaled."""
        return leaf if self.is_plain else self._place.get(leaf, at)

    def back(self, leaf: Array, tensor: Array, at: At = ()) -> Array:
        """The leaf with its tensor exchanged."""
        return tensor if self.is_plain else self._place.put(leaf, tensor, at)

    def matrix(self, leaf: Array, at: At = ()) -> Float[Array, "out in"]:
        """The leaf as the matrix on which updates act: (out, in), a bias (out, 1)."""
        tensor = as_matrix(self.tensor(leaf, at), self.part)
        if self.scale != 1:
            tensor = tensor.astype(arithmetic(leaf.dtype)) / self.scale
        return tensor.T if self.transposed else tensor

    def scaled(self, made: AffineMap) -> AffineMap:
        """The map of a matrix as that of what the leaf holds, c·W: ``cW ↦ L (cW) Rᵀ + cΔ``."""
        return made if self.scale == 1 else replace(made, shift=made.shift.scaled(self.scale))

    def turned(self, made: AffineMap) -> AffineMap:
        """The map of a matrix as that of the tensor for the passes."""
        made = self.scaled(made)
        return made.T if self.transposed else made

    def shape(self, leaf_shape: tuple[int, ...]) -> tuple[int, int]:
        """The shape of that matrix, of a leaf of this shape."""
        shape = leaf_shape if self.is_plain else self._place.shape(leaf_shape)
        rows, columns = shape[0], math.prod(shape[1:])
        if self.part == "bias":
            rows, columns = rows * columns, 1
        return (columns, rows) if self.transposed else (rows, columns)


def arithmetic(dtype: Any) -> np.dtype:
    """The dtype of the arithmetic for weights of a dtype: float32 at the least."""
    return np.promote_types(dtype, np.float32)


def as_matrix(tensor: Array, part: Part) -> Float[Array, "rows cols"]:
    """A tensor as a matrix: all axes but the first are one; a bias is a column."""
    if part == "bias":
        return tensor.reshape(tensor.size, 1)
    return tensor.reshape(tensor.shape[0], math.prod(tensor.shape[1:]))
