"""Forms: how a leaf holds a site's tensor, for compiled functions."""

import math
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from jaxmix.affine import AffineMap
from jaxmix.placement.place import Part, Place

__all__ = ["At", "Form", "arithmetic", "as_matrix"]

# The numbers of layers and experts in an index: traced, so one program serves all of them.
At = tuple[Any, ...]


# A whole leaf, its axes in PyTorch's order.
_WHOLE = Place("")


@dataclass(frozen=True)
class Form:
    """How a leaf holds a site's tensor: what a compiled function depends on besides shapes.

    It is static in compiled functions, so it does not contain the leaf's name: sites stored in
    the same way share a program.

    Args:
        part: Whether it is the site's weight or its bias.
        place: The place in the leaf, without the leaf's name and scale.
        transposed: Whether the tensor, of two axes, is (in, out) instead of (out, in).
        sharding: The leaf's sharding, which the result keeps; None for one device.
        scale: The factor by which the leaf's numbers are larger than PyTorch's tensor.
    """

    part: Part = "weight"
    place: Place = _WHOLE
    transposed: bool = False
    sharding: jax.sharding.NamedSharding | None = None
    scale: float = 1.0

    @property
    def axes(self) -> str | None:
        """The einops pattern from the leaf's axes to PyTorch's; None if they are the same."""
        return self.place.axes

    @property
    def index(self) -> str | None:
        """The index into the leaf; None for the whole leaf."""
        return self.place.index

    @property
    def is_plain(self) -> bool:
        """Whether the leaf is a matrix or its transpose, up to a reshape."""
        return self.axes is None and self.index is None

    @property
    def bare(self) -> "Form":
        """The form without its index and pattern: the same for all layers of a stack."""
        sharding = self.sharding if self.is_plain else None
        place = Place("", None if self.is_plain else "...")
        return Form(self.part, place, self.transposed, sharding, self.scale)

    def split_index(self) -> tuple["Form", At]:
        """Returns the form with zeros in its index, which all layers share, and the numbers."""
        if self.index is None:
            return self, ()
        items = self.index.split(",")
        at = tuple(np.int32(item) for item in items if ":" not in item)
        index = ",".join(item if ":" in item else "0" for item in items)
        return replace(self, place=replace(self.place, index=index)), at

    def tensor(self, leaf: Array, at: At = ()) -> Array:
        """Returns the leaf itself if it is plain, otherwise PyTorch's tensor, still scaled."""
        return leaf if self.is_plain else self.place.get(leaf, at)

    def updated_leaf(self, leaf: Array, tensor: Array, at: At = ()) -> Array:
        """Returns the leaf with its tensor replaced."""
        return tensor if self.is_plain else self.place.put(leaf, tensor, at)

    def matrix(self, leaf: Array, at: At = ()) -> Float[Array, "out in"]:
        """Returns the matrix that updates act on: a weight (out, in), a bias (out, 1)."""
        tensor = as_matrix(self.tensor(leaf, at), self.part)
        if self.scale != 1:
            tensor = tensor.astype(arithmetic(leaf.dtype)) / self.scale
        return tensor.T if self.transposed else tensor

    def scaled(self, affine_map: AffineMap) -> AffineMap:
        """Returns the map of c·W, which the leaf holds: ``cW ↦ L (cW) Rᵀ + cΔ``."""
        return (
            affine_map
            if self.scale == 1
            else replace(affine_map, shift=affine_map.shift.scaled(self.scale))
        )

    def tensor_map(self, affine_map: AffineMap) -> AffineMap:
        """Returns the map of the tensor that `tensor` returns."""
        affine_map = self.scaled(affine_map)
        return affine_map.T if self.transposed else affine_map

    def shape(self, leaf_shape: tuple[int, ...]) -> tuple[int, int]:
        """Returns the shape of the matrix, for a leaf of this shape."""
        shape = leaf_shape if self.is_plain else self.place.shape(leaf_shape)
        rows, columns = shape[0], math.prod(shape[1:])
        if self.part == "bias":
            rows, columns = rows * columns, 1
        return (columns, rows) if self.transposed else (rows, columns)


def arithmetic(dtype: Any) -> np.dtype:
    """Returns the dtype of arithmetic with weights of a dtype: float32 or wider."""
    return np.promote_types(dtype, np.float32)


def as_matrix(tensor: Array, part: Part) -> Float[Array, "rows cols"]:
    """Returns a tensor as a matrix, all axes after the first merged; a bias is a column."""
    if part == "bias":
        return tensor.reshape(tensor.size, 1)
    return tensor.reshape(tensor.shape[0], math.prod(tensor.shape[1:]))
