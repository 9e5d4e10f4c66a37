"""Places: where one tensor of a site is in a leaf, and how to read and write it."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import einops
import jax
import jax.numpy as jnp
import numpy as np

from jaxmix.errors import LayoutError
from jaxmix.families.base import Part
from jaxmix.placement.index import literal_index, parsed_index

__all__ = ["Part", "Place", "Scale", "are_sizes", "atoms", "is_scale", "spelled"]

# A number, or a product of powers of axis sizes: (("h", -0.5),) is 1/√h.
Scale = float | tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Place:
    """Where one tensor of a site is: ``leaf[index] / scale`` with rearranged axes is PyTorch's.

    Args:
        leaf: The leaf's dotted name.
        axes: An einops pattern from the leaf's axes to PyTorch's; None if they are the same.
        index: An index into the leaf, as a string, for `placement.index`; None for the whole leaf.
        sizes: Sizes of axes that do not follow from the leaf's shape, for instance of a split axis.
        scale: The factor by which the leaf is larger than PyTorch's tensor: a number, or sizes of
            the pattern's axes, each to a power.

    Raises:
        LayoutError: By `shape`, if the leaf does not have these axes or the index is invalid.

    Example:
        >>> Place("attn.kernel", "d n h -> (n h) d").shape((6, 2, 4))
        (8, 6)
        >>> rotary = Place("q", "d n (h two) -> (n two h) d", None, (("two", 2),), (("h", -0.5),))
        >>> rotary.shape((6, 2, 8)), rotary.factor((6, 2, 8))
        ((16, 6), 0.5)

    Source: https://einops.rocks.
    """

    leaf: str
    axes: str | None = None
    index: str | None = None
    sizes: tuple[tuple[str, int], ...] = ()
    scale: Scale = 1.0

    def get(self, leaf: jax.Array, at: Sequence[Any] = ()) -> jax.Array:
        """Returns PyTorch's tensor from the leaf; ``at`` replaces the numbers in the index."""
        part = leaf if self.index is None else leaf[self._index(leaf.shape, at)]
        if (factor := self.factor(leaf.shape)) != 1:
            part = part / factor
        return part if self.axes is None else einops.rearrange(part, self.axes, **dict(self.sizes))

    def put(self, leaf: jax.Array, tensor: jax.Array, at: Sequence[Any] = ()) -> jax.Array:
        """Returns the leaf with PyTorch's tensor written to the place; ``at`` as in `get`."""
        part = leaf if self.index is None else leaf[self._index(leaf.shape, at)]
        if self.axes is not None:
            left, right = (side.strip() for side in self.axes.split("->"))
            sizes = self.axis_sizes(part.shape) if "(" in self.axes else {}
            tensor = einops.rearrange(tensor, f"{right} -> {left}", **sizes)
        if (factor := self.factor(leaf.shape)) != 1:
            tensor = tensor * factor
        tensor = tensor.reshape(part.shape).astype(leaf.dtype)
        return tensor if self.index is None else leaf.at[self._index(leaf.shape, at)].set(tensor)

    def _index(self, shape: tuple[int, ...], at: Sequence[Any]) -> tuple[Any, ...]:
        """The index with the given numbers."""
        assert self.index is not None
        numbers = iter(at)
        index = parsed_index(self.index, shape)
        return tuple(x if isinstance(x, slice) else next(numbers, x) for x in index)

    def literal(self, leaf_shape: tuple[int, ...]) -> "Place":
        """Returns the same place in a leaf of this shape, with ranges for parts of axes."""
        if self.index is None or "/" not in self.index:
            return self
        return replace(self, index=literal_index(self.index, leaf_shape))

    def factor(self, leaf_shape: tuple[int, ...]) -> float:
        """Returns the scale as a number, for a leaf of this shape."""
        if not isinstance(self.scale, tuple):
            return self.scale
        return _factor(self, leaf_shape)

    def axis_sizes(self, part_shape: Sequence[int]) -> dict[str, int]:
        """Returns the size of each axis of the pattern, for the part that the index selects."""
        left = spelled((self.axes or "...").split("->")[0], len(part_shape))
        known, found = dict(self.sizes), {}
        for group, size in zip(left, part_shape, strict=True):
            stated = math.prod(known[name] for name in group if name in known)
            found.update({name: known.get(name, size // stated) for name in group})
        return found

    def ranges(self, leaf_shape: tuple[int, ...]) -> tuple[range, ...]:
        """Returns the positions along each axis of the leaf that the index selects."""
        index = () if self.index is None else parsed_index(self.index, leaf_shape)
        index = (*index, *[slice(None)] * (len(leaf_shape) - len(index)))
        return tuple(
            range(size)[at] if isinstance(at, slice) else range(size)[at : at + 1 or None]
            for size, at in zip(leaf_shape, index, strict=True)
        )

    def part_shape(self, leaf_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape of the part that the index selects."""
        index = () if self.index is None else parsed_index(self.index, leaf_shape)
        return np.broadcast_to(np.zeros((), np.float32), leaf_shape)[index].shape

    def shape(self, leaf_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape of PyTorch's tensor, for a leaf of this shape.

        Raises:
            LayoutError: If the leaf does not have the rule's axes.
        """
        return _shape(self, leaf_shape)

    def same(self, other: "Place", leaf_shape: tuple[int, ...]) -> bool:
        """Returns whether another place is the same tensor, possibly spelled differently."""
        return _meaning(self, leaf_shape) == _meaning(other, leaf_shape)


def atoms(side: str) -> list[list[str]]:
    """Splits one side of an einops pattern into the names in each of its axes.

    Args:
        side: The string on one side of the arrow.

    Returns:
        A list for each axis; an ellipsis counts as an axis.

    Example:
        >>> atoms("d (n h) ... 1")
        [['d'], ['n', 'h'], ['...'], []]
    """
    groups = re.findall(r"\(([^()]*)\)|(\S+)", side.strip())
    return [
        (inner.split() if not name else [] if name == "1" else [name]) for inner, name in groups
    ]


@lru_cache(maxsize=4096)
def _factor(place: Place, leaf_shape: tuple[int, ...]) -> float:
    assert isinstance(place.scale, tuple)
    sizes = place.axis_sizes(place.part_shape(leaf_shape))
    return math.prod(sizes[name] ** power for name, power in place.scale)


@lru_cache(maxsize=4096)
def _meaning(place: Place, leaf_shape: tuple[int, ...]) -> tuple[Any, ...]:
    """A place in a normal form: axes numbered, and no pattern if it moves nothing."""
    axes, sizes = place.axes, ()
    picked = tuple((r.start, r.stop, r.step) for r in place.ranges(leaf_shape))
    if axes is not None:
        n = len(place.part_shape(leaf_shape))
        left, right = (spelled(side, n) for side in axes.split("->"))
        number = {name: i for i, name in enumerate(name for group in left for name in group)}
        left, right = ([[number[name] for name in g] for g in side] for side in (left, right))
        axes = None if left == right else (left, right)
        stated: Mapping[str, int] = dict(place.sizes)
        sizes = tuple(sorted((number[k], v) for k, v in stated.items() if k in number))
    return place.leaf, str(axes), picked, sizes, place.factor(leaf_shape)


def spelled(side: str, n: int) -> list[list[str]]:
    """Splits one side of an einops pattern, with its ellipsis expanded.

    Args:
        side: The string on one side of the arrow.
        n: The number of axes of the tensor on the pattern's left.

    Returns:
        As `atoms`, with each axis of the ellipsis.

    Example:
        >>> spelled("... i o", 3)
        [['…0'], ['i'], ['o']]
    """
    groups = atoms(side)
    spare = n - len(groups) + 1
    if ["..."] not in groups:
        return groups
    at = groups.index(["..."])
    return [*groups[:at], *([f"…{i}"] for i in range(spare)), *groups[at + 1 :]]


@lru_cache(maxsize=4096)
def _shape(place: Place, leaf_shape: tuple[int, ...]) -> tuple[int, ...]:
    if place.axes is None and place.index is None and place.scale == 1:
        return leaf_shape
    subject = "index"
    try:
        index = () if place.index is None else parsed_index(place.index, leaf_shape)
        # JAX clamps an index that is out of range; NumPy refuses it.
        np.broadcast_to(np.zeros((), np.float32), leaf_shape)[index]
        if place.axes is not None:
            subject = f"axes {place.axes!r}"
            if place.axes.count("->") != 1:
                raise ValueError("expected the leaf's axes, an arrow, and PyTorch's axes")
        leaf = jax.ShapeDtypeStruct(leaf_shape, jnp.float32)
        tensor = jax.eval_shape(place.get, leaf)
        jax.eval_shape(place.put, leaf, tensor)
        return tensor.shape
    except LayoutError:  # it explains itself
        raise
    except (einops.EinopsError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        at = "" if place.index is None else f"[{place.index}]"
        if isinstance(error, KeyError):
            subject = f"axis {error} of the scale {place.scale}"
            error = "the pattern does not name it"
        reason = str(error).splitlines()[-1].strip()
        raise LayoutError(
            f"{place.leaf}{at} of shape {leaf_shape} does not have the {subject} of the layout's "
            f"rule ({reason}). Fix the rule."
        ) from None


def are_sizes(value: object) -> bool:
    """Returns whether a value is a tuple of axis names with their sizes.

    Args:
        value: A rule's ``sizes``.

    Returns:
        True if it is.

    Example:
        >>> are_sizes((("two", 2),)), are_sizes((("two", 0.5),))
        (True, False)
    """
    return _are_pairs(value, _is_positive_integer)


def is_scale(value: object) -> bool:
    """Returns whether a value is a positive number, or axis names with powers.

    Args:
        value: A rule's ``scale``.

    Returns:
        True if it is.

    Example:
        >>> is_scale(0.5), is_scale((("h", -0.5),)), is_scale(0), is_scale(10**400)
        (True, True, False, False)
    """
    return _is_positive(value) or _are_pairs(value, _is_finite)


def _are_pairs(value: object, is_good: Callable[[object], bool]) -> bool:
    """Whether a value is a tuple of names with numbers."""
    pairs = value if isinstance(value, tuple) else (value,)
    return all(
        isinstance(pair, tuple) and list(map(type, pair[:1])) == [str] and is_good(*pair[1:])
        for pair in pairs
    )


def _is_finite(value: object = None, *more: object) -> bool:
    """Whether a value is a finite number."""
    return not more and type(value) in (int, float) and abs(value) < 1e300  # pyright: ignore


def _is_positive(value: object = None, *more: object) -> bool:
    """Whether a value is a positive number."""
    return _is_finite(value, *more) and value > 0  # pyright: ignore


def _is_positive_integer(value: object = None, *more: object) -> bool:
    """Whether a value is a positive integer."""
    return _is_positive(value, *more) and isinstance(value, int)
