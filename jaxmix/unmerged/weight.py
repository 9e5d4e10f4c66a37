"""What stands for a weight while a function runs: its base and its map, apart."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmix.affine import AffineMap
from jaxmix.apply.plan import arithmetic
from jaxmix.operators import Zero
from jaxmix.placement.quantized import dequantized

__all__ = ["PASS", "How", "Weight", "added_flops", "is_cheaper"]

# Whether products go by the operators, by the dense weight, or by whichever costs less.
How = Literal["auto", "factored", "dense"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Weight:
    """An array ``W' = L W Rᵀ + Δ`` that is not made: the base W and the map.

    Args:
        base: W, its axes in any order; an array, or a quantized one.
        map: the map of the matrix (out, in); of a stack, with a further first axis.
        out: which of the base's axes are the matrix's rows, counted from the end: -1 is the last.
        into: which are its columns, likewise.
        stack: the axis along which maps differ, likewise; None for one map. Where it is the first
            one and `jax.lax.scan` has taken a slice, it is no longer there.
        how: how products go.
        name: the leaf's dotted name, for messages.
    """

    base: Any
    map: AffineMap
    out: tuple[int, ...] = field(metadata={"static": True})
    into: tuple[int, ...] = field(metadata={"static": True})
    stack: int | None = field(default=None, metadata={"static": True})
    how: How = field(default="auto", metadata={"static": True})
    name: str = field(default="", metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array that it stands for."""
        return tuple(self.base.shape)

    @property
    def dtype(self) -> Any:
        """The dtype of the array that it stands for."""
        return self.base.dtype

    @property
    def is_stacked(self) -> bool:
        """Whether it has an axis along which maps differ."""
        return self.stack is not None and -self.stack <= len(self.shape)

    @property
    def axes(self) -> tuple[tuple[int, ...], tuple[int, ...], int | None]:
        """Its rows' axes, its columns' and its stack's, counted from 0."""
        n = len(self.shape)
        stack = n + self.stack if self.stack is not None and self.is_stacked else None
        return tuple(n + k for k in self.out), tuple(n + k for k in self.into), stack

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """(out, in)."""
        rows, cols, _ = self.axes
        return math.prod(self.shape[k] for k in rows), math.prod(self.shape[k] for k in cols)

    def count(self, measure: Callable[[AffineMap], Any]) -> Any:
        """What is told of its map, or of one of a stack's, by shapes alone: nothing is computed."""
        cut = 1 if self.is_stacked else 0
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[cut:], x.dtype), self.map)
        said: list[Any] = []
        jax.eval_shape(lambda one: said.append(measure(one)), shapes)
        return said[0]

    def plain(self) -> Array:
        """The base as an array."""
        return jnp.asarray(dequantized(self.base))

    def dense(self) -> Array:
        """The array that it stands for, ``L W Rᵀ + Δ``."""
        base = self.plain()
        rows, cols, stack = self.axes
        order = (*(() if stack is None else (stack,)), *rows, *cols)
        moved = base.transpose(order)
        lead = moved.shape[:1] if stack is not None else ()
        matrix = moved.reshape(*lead, *self.matrix_shape).astype(arithmetic(base.dtype))
        with jax.default_matmul_precision("highest"):
            made = jax.vmap(_put)(self.map, matrix) if lead else _put(self.map, matrix)
        back = sorted(range(len(order)), key=order.__getitem__)
        return made.reshape(moved.shape).transpose(back).astype(self.dtype)

    def map_to(self, turned: bool) -> AffineMap:
        """The map of the matrix, or of its transpose."""
        if not turned:
            return self.map
        return jax.vmap(lambda one: one.T)(self.map) if self.is_stacked else self.map.T

    def moved(self, order: Sequence[int]) -> "Weight":
        """With its axes in another order."""
        n = len(order)
        new = {old: k - n for k, old in enumerate(order)}
        rows, cols, stack = self.axes
        return replace(
            self,
            base=self.base.transpose(tuple(order)),
            out=tuple(new[k] for k in rows),
            into=tuple(new[k] for k in cols),
            stack=None if stack is None else new[stack],
        )

    def cast(self, dtype: Any) -> "Weight":
        """In another dtype."""
        return replace(self, base=self.base.astype(dtype))


def _put(one: AffineMap, matrix: Float[Array, "out in"]) -> Float[Array, "out in"]:
    return one(matrix)


# A pass over a weight takes as long as this many operations a number. Accelerators were not
# measured.
PASS = 16


def is_cheaper(weight: Weight, tokens: int, turned: bool) -> bool:
    """Whether products with so many tokens cost less by the operators than by the dense weight."""
    if weight.how != "auto":
        return weight.how == "factored"

    def is_less(one: AffineMap) -> bool:
        thin = added_flops(one.T if turned else one, tokens)
        return thin <= one.flops() + PASS * math.prod(weight.matrix_shape)

    return weight.count(is_less)


def added_flops(one: AffineMap, tokens: int) -> int:
    """What the operators add to the base's product with so many tokens."""
    sides = one.left.matmul_flops(tokens) + one.right.matmul_flops(tokens)
    if isinstance(one.shift, Zero):
        return sides
    return sides + one.shift.matmul_flops(tokens) + one.shape[0] * tokens
