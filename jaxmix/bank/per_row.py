"""An operator that each row of a batch selects from stacks shared by all rows.

Under `jax.vmap` over the rows, plain indexing would copy every row's factors before it multiplies.
So this module defines its own batching rule, with one form for CPU and one for accelerators.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Float, Int

from jaxmix.bank.looped import Schedule, apply_by_loops
from jaxmix.bank.masked import apply_by_masks
from jaxmix.bank.slots import BROKEN, Selection, entry
from jaxmix.operators import Dense, Identity, Operator, Product
from jaxmix.operators.backends import by_platform
from jaxmix.operators.base import static
from jaxmix.operators.loops import carry
from jaxmix.operators.outlines import from_shapes
from jaxmix.pytrees import register_dataclass

__all__ = ["PerRow"]


@register_dataclass
@dataclass(frozen=True, eq=False)
class PerRow(Operator):
    """An operator selected from stacks by slot, or the sum of all slots weighted by strengths.

    A negative slot selects nothing from a stack, and `BROKEN` makes the result NaN. Operators
    selected from several stacks are added. Of factors (L or R) a row selects at most one, and the
    identity without one.

    Args:
        stacks: Operators of one structure each, whose arrays have a leading axis of slots.
        picks: What the row selects from each stack.
        n_rows: The number of rows of the operators.
        n_cols: The number of columns of the operators.
        is_factor: Whether selecting nothing gives the identity instead of zero.
        is_transposed: Whether the operators are the transposes of those in the stacks.
        rows_per_slot: The average number of rows of a batch per slot.
        schedules: How all rows go through each stack on CPU; empty to find it at each use.

    Example:
        >>> from jaxmix.operators import Diagonal
        >>> stack = Diagonal(jnp.array([[2.0, 3.0], [4.0, 5.0]]))
        >>> second = Selection(slot=jnp.asarray(1))
        >>> PerRow((stack,), (second,), 2, 2, True).dense().tolist()
        [[4.0, 0.0], [0.0, 5.0]]
        >>> both = Selection(strengths=jnp.array([1.0, 0.5]))
        >>> PerRow((stack,), (both,), 2, 2, False).dense().tolist()
        [[4.0, 0.0], [0.0, 5.5]]
    """

    stacks: tuple[Operator, ...]
    picks: tuple[Selection, ...]
    n_rows: int = static()
    n_cols: int = static()
    is_factor: bool = static()
    is_transposed: bool = static(False)
    rows_per_slot: int = static(1)
    schedules: tuple[Schedule, ...] = ()

    @property
    def shape(self) -> tuple[int, int]:
        return self.n_rows, self.n_cols

    @property
    def T(self) -> "PerRow":
        return replace(
            self, n_rows=self.n_cols, n_cols=self.n_rows, is_transposed=not self.is_transposed
        )

    def dense(self) -> Array:
        dtype = self._dtype()
        start = (
            jnp.eye(self.n_rows, dtype=dtype) if self.is_factor else jnp.zeros(self.shape, dtype)
        )
        use = partial(_dense, self.is_transposed)
        return _single(use, self.is_factor, start, self.stacks, self.picks)

    def scaled(self, factor: Array | float) -> Product:
        return Product(Identity(self.n_rows).scaled(factor), self)

    def __rmatmul__(self, x: Float[Array, "n rows"]) -> Float[Array, "n cols"]:
        if self.is_factor:
            return self._applied(_matmul, x, x)
        dtype = jnp.result_type(x.dtype, self._dtype())
        return self._applied(_matmul, jnp.zeros((x.shape[0], self.n_cols), dtype), x)

    def product_added_to(
        self, y: Float[Array, "n cols"], x: Float[Array, "n rows"]
    ) -> Float[Array, "n cols"]:
        return y + x @ self if self.is_factor else self._applied(_matmul, y, x)

    def __matmul__(self, x: Float[Array, "cols n"]) -> Float[Array, "rows n"]:
        return (x.T @ self.T).T

    def take_rows(self, at: Int[Array, " n"]) -> Float[Array, "n cols"]:
        if self.is_factor:
            return self.dense()[at]
        start = jnp.zeros((*at.shape, self.n_cols), self._dtype())
        return self._applied(_take_rows, start, at)

    def rows(self, part: slice) -> Dense:
        return Dense(self.dense()[part])

    def flops(self) -> int:
        return sum(self._counts(lambda operator: operator.flops()))

    def matmul_flops(self, n: int) -> int:
        return sum(self._counts(lambda operator: operator.matmul_flops(n)))

    def _applied(self, use: Callable[..., Array], start: Array, x: Array) -> Array:
        """Adds what the row selects for its tokens or indices to `start`; factors replace it."""
        apply = _grouped(use, self.is_transposed, self.is_factor, self.rows_per_slot)
        return apply(start, x, self.stacks, self.picks, self.schedules)

    def _dtype(self) -> Any:
        floats = [leaf.dtype for leaf in jax.tree.leaves(self.stacks) if _is_float(leaf)]
        return jnp.result_type(*floats) if floats else jnp.zeros(()).dtype

    def _counts(self, count: Callable[[Operator], int]) -> list[int]:
        """Applies a count to one operator of each stack, using shapes alone."""
        return [from_shapes(lambda x: count(entry(x, 0)), stack) for stack in self.stacks]


# ---------------------------------------------------------------- uses of an operator


def _matmul(is_transposed: bool, operator: Operator, x: Array) -> Array:
    return x @ (operator.T if is_transposed else operator)


def _take_rows(is_transposed: bool, operator: Operator, at: Array) -> Array:
    return (operator.T if is_transposed else operator).take_rows(at)


def _dense(is_transposed: bool, operator: Operator) -> Array:
    return (operator.T if is_transposed else operator).dense()


# ---------------------------------------------------------------- one row, and a batch of rows


def _single(
    use: Callable[[Operator], Array], is_factor: bool, start: Array, stacks: Any, picks: Any
) -> Array:
    """Applies the operators that one row selects."""
    result = _with_nan(start, picks)
    for stack, pick in zip(stacks, picks, strict=True):
        if pick.strengths is not None:
            outputs = jax.vmap(use)(stack)
            strengths = pick.strengths.astype(outputs.dtype)
            strengths = strengths.reshape(-1, *[1] * (outputs.ndim - 1))
            # A strength of zero leaves out inf and NaN.
            result = result + jnp.where(strengths == 0, 0, strengths * outputs).sum(0)
        elif pick.slot is not None:
            output = use(entry(stack, jnp.maximum(pick.slot, 0)))
            output = output if is_factor else result + output
            result = jnp.where(pick.slot >= 0, output, result)
    return result


def _with_nan(start: Array, picks: Any) -> Array:
    """The start of one row or of many, NaN for rows that select a broken operator."""
    if not (slots := [pick.slot for pick in picks if pick.slot is not None]):
        return start
    is_broken = reduce(jnp.logical_or, (slot == BROKEN for slot in slots))
    is_broken = is_broken.reshape(is_broken.shape + (1,) * (start.ndim - is_broken.ndim))
    return jnp.where(is_broken, jnp.full((), np.nan, start.dtype), start)


def _with_nan_if_any(start: Array, picks: Any) -> Array:
    """The same for a batch of rows, without a pass over it if no operator is broken."""
    slots = [jnp.any(pick.slot == BROKEN) for pick in picks if pick.slot is not None]
    if not slots:
        return start
    is_any, start = reduce(jnp.logical_or, slots), carry(start, picks)
    return jax.lax.cond(is_any, lambda start: _with_nan(start, picks), lambda start: start, start)


@lru_cache
def _grouped(
    use: Any, is_transposed: bool, is_factor: bool, rows_per_slot: int
) -> Callable[..., Array]:
    """Returns ``(start, x, stacks, picks, schedules) -> result``, with batching and gradient."""
    apply = partial(use, is_transposed)

    def single(start: Array, x: Array, stacks: Any, picks: Any) -> Array:
        return _single(lambda m: apply(m, x), is_factor, start, stacks, picks)

    # As compiled functions they are traced once for all leaves of one shape.
    @jax.jit
    def on_cpu(start: Array, x: Array, stacks: Any, picks: Any, schedules: Any) -> Array:
        start = _with_nan_if_any(start, picks)
        return apply_by_loops(apply, is_factor, start, x, stacks, picks, schedules, rows_per_slot)

    @jax.jit
    def on_accelerator(start: Array, x: Array, stacks: Any, picks: Any, _: Any) -> Array:
        is_lookup, start = use is _take_rows, _with_nan(start, picks)
        return apply_by_masks(is_transposed, is_lookup, is_factor, start, x, stacks, picks)

    @custom_vmap
    def grouped(start: Array, x: Array, stacks: Any, picks: Any, schedules: Any) -> Array:
        return single(start, x, stacks, picks)

    @grouped.def_vmap
    def batched(
        size: int, is_batched: Any, start: Array, x: Array, stacks: Any, picks: Any, schedules: Any
    ) -> Any:
        *in_inputs, in_stacks, in_picks, in_schedules = is_batched
        if any(jax.tree.leaves(in_stacks)) or not all(jax.tree.leaves(in_picks)):
            flags = *in_inputs, in_stacks, in_picks
            axes = jax.tree.map(lambda flag: 0 if flag else None, flags)
            return jax.vmap(single, axes, axis_size=size)(start, x, stacks, picks), True
        start, x = (
            value if flag else jnp.broadcast_to(value[None], (size, *value.shape))
            for value, flag in zip((start, x), in_inputs, strict=True)
        )
        schedules = () if any(jax.tree.leaves(in_schedules)) else schedules
        args = start, x, stacks, picks, schedules
        return by_platform(on_cpu, lambda backend, *args: on_accelerator(*args), *args), True

    @jax.custom_vjp
    def product(start: Array, x: Array, stacks: Any, picks: Any, schedules: Any) -> Array:
        return grouped(start, x, stacks, picks, schedules)

    def forward(start: Array, x: Array, stacks: Any, picks: Any, schedules: Any) -> Any:
        return grouped(start, x, stacks, picks, schedules), (start, x, stacks, picks)

    def backward(residuals: Any, cotangent: Array) -> Any:
        return *jax.vjp(single, *residuals)[1](cotangent), None

    product.defvjp(forward, backward)
    return product


def _is_float(leaf: Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating)
