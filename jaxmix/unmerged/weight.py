"""A weight while a function runs: its base and its map, kept separate."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmix.affine import AffineMap
from jaxmix.apply import accelerated, slabs
from jaxmix.apply.plan import arithmetic
from jaxmix.operators import Operator, terms
from jaxmix.operators.backends import GPU, TPU, Backend, by_platform
from jaxmix.operators.outlines import from_shapes
from jaxmix.placement.devices import is_explicit
from jaxmix.placement.quantized import dequantized
from jaxmix.pytrees import register_dataclass

__all__ = ["How", "Weight", "on_platform"]

# Whether products use the operators, the dense weight, or the cheaper of both.
How = Literal["auto", "factored", "dense"]


@register_dataclass
@dataclass(frozen=True, eq=False)
class Weight:
    """An array ``W' = L W Rᵀ + Δ`` that is not materialized: the base W and the map.

    Args:
        base: W, with axes in any order; an array or a quantized array.
        map: The map of the matrix (out, in); for a stack, with an additional first axis.
        out: The base's axes that are the matrix's rows, counted from the end: -1 is the last.
        into: The axes that are its columns, likewise.
        stack: The axis along which maps differ, likewise; None for one map. If it is the first axis
            and `jax.lax.scan` has taken a slice, it is absent.
        how: How products are computed.
        name: The leaf's dotted name, for messages.
        is_transposed: Whether a matrix is the transpose of how the leaf is stored.
    """

    base: Any
    map: AffineMap
    out: tuple[int, ...] = field(metadata={"static": True})
    into: tuple[int, ...] = field(metadata={"static": True})
    stack: int | None = field(default=None, metadata={"static": True})
    how: How = field(default="auto", metadata={"static": True})
    name: str = field(default="", metadata={"static": True})
    is_transposed: bool = field(default=False, metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array that it represents."""
        return tuple(self.base.shape)

    @property
    def dtype(self) -> Any:
        """The dtype of the array that it represents."""
        return self.base.dtype

    @property
    def is_stacked(self) -> bool:
        """Whether it has an axis along which maps differ."""
        return self.stack is not None and -self.stack <= len(self.shape)

    @property
    def axes(self) -> tuple[tuple[int, ...], tuple[int, ...], int | None]:
        """The axes of its rows, columns and stack, counted from 0."""
        n = len(self.shape)
        stack = n + self.stack if self.stack is not None and self.is_stacked else None
        return tuple(n + k for k in self.out), tuple(n + k for k in self.into), stack

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """(out, in)."""
        rows, cols, _ = self.axes
        return math.prod(self.shape[k] for k in rows), math.prod(self.shape[k] for k in cols)

    def count(self, measure: Callable[[AffineMap], Any]) -> Any:
        """Its map, or one map of a stack, as shapes only."""
        cut = 1 if self.is_stacked else 0
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[cut:], x.dtype), self.map)
        return from_shapes(measure, shapes)

    def plain(self) -> Array:
        """The base as an array."""
        return jnp.asarray(dequantized(self.base))

    def dense(self) -> Array:
        """Returns the array that it represents, ``L W Rᵀ + Δ``."""
        base = self.plain()
        rows, cols, stack = self.axes
        order = (*(() if stack is None else (stack,)), *rows, *cols)
        moved = base.transpose(order)
        lead = moved.shape[:1] if stack is not None else ()
        matrix = moved.reshape(*lead, *self.matrix_shape)
        put = _put if lead else partial(_put, is_whole=True, is_transposed=rows > cols)
        with jax.default_matmul_precision("highest"):
            changed = jax.vmap(put)(self.map, matrix) if lead else put(self.map, matrix)
        back = sorted(range(len(order)), key=order.__getitem__)
        return changed.reshape(moved.shape).transpose(back)

    def map_to(self, is_transposed: bool) -> AffineMap:
        """The map of the matrix, or of its transpose."""
        if not is_transposed:
            return self.map
        return jax.vmap(lambda layer: layer.T)(self.map) if self.is_stacked else self.map.T

    def moved(self, order: Sequence[int]) -> "Weight":
        """Returns the weight with its axes in another order."""
        n = len(order)
        new = {old: k - n for k, old in enumerate(order)}
        rows, cols, stack = self.axes
        return replace(
            self,
            base=self.base.transpose(tuple(order)),
            out=tuple(new[k] for k in rows),
            into=tuple(new[k] for k in cols),
            stack=None if stack is None else new[stack],
            is_transposed=self.is_transposed != (tuple(order) == (1, 0)),
        )

    def with_delta(self, delta: Operator) -> "Weight":
        """Returns the weight with another Δ."""
        return replace(self, map=replace(self.map, shift=delta))

    def cast(self, dtype: Any) -> "Weight":
        """Returns the weight in another dtype."""
        return replace(self, base=self.base.astype(dtype))


def _put(
    step: AffineMap,
    matrix: Float[Array, "out in"],
    *,
    is_whole: bool = False,
    is_transposed: bool = False,
) -> Float[Array, "out in"]:
    """The map of a matrix, rounded once to its dtype.

    Args:
        step: The map.
        matrix: The matrix.
        is_whole: Whether it is all of a leaf, and not one of a stack.
        is_transposed: Whether the leaf stores its transpose.
    """

    def on_cpu(step: AffineMap, matrix: Array) -> Array:
        wide = matrix.astype(arithmetic(matrix.dtype))
        if is_whole and wide.dtype == matrix.dtype and _has_slabs(step):
            return _by_slabs(step, matrix, is_transposed)
        return step(wide).astype(matrix.dtype)

    def on_accelerator(backend: Backend, step: AffineMap, matrix: Array) -> Array:
        # It is unknown whether the matrix is on one device.
        return accelerated.run(backend, matrix, [step], None, is_whole=False)

    return on_platform(matrix, on_cpu, on_accelerator, step, matrix)


def _has_slabs(step: AffineMap) -> bool:
    """Whether a map only adds several terms, all of which are best added slab by slab."""
    added = terms(step.shift)
    # With several devices the weight may be sharded, and cutting it into slabs would gather it.
    if len(jax.devices("cpu")) > 1:
        return False
    return step.is_shift and len(added) > 1 and all(map(slabs.has_slabs, added))


def _by_slabs(step: AffineMap, matrix: Array, is_transposed: bool) -> Array:
    """``W + Δ``, by slabs of the leaf's rows."""
    if is_transposed:
        return slabs.added(matrix.T, terms(step.shift.T)).T
    return slabs.added(matrix, terms(step.shift))


def on_platform(
    x: Array, cpu: Callable[..., Any], accelerator: Callable[..., Any], *operands: Any
) -> Any:
    """Runs the form that suits the platform, as `by_platform` does.

    On a mesh with explicit axes, the two forms may have other shardings of the same result, which
    one program can't contain: there it is the platform of this process.

    Args:
        x: An array whose sharding shows the kind of mesh.
        cpu: The function for CPU.
        accelerator: The function for others, which takes the `Backend` first.
        *operands: The arguments of both functions.
    """
    if not is_explicit(x):
        return by_platform(cpu, accelerator, *operands)
    if jax.default_backend() == "cpu":
        return cpu(*operands)
    return accelerator(TPU if jax.default_backend() == "tpu" else GPU, *operands)
