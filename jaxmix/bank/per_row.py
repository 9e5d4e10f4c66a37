"""An operator that each row of a batch selects from stacks shared by all rows.

Under `jax.vmap` over the rows, plain indexing would copy every row's factors before it multiplies.
On CPU that took longer than the base's product. So this module defines its own batching rule. If
most slots are used, one batched product reads the whole stack. The remaining rows go through a loop
with a traced trip count, which reads each row's factors once and skips rows that select nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Float, Int

from jaxmix.operators import Dense, Identity, Operator, Product, Sparse
from jaxmix.operators.base import static
from jaxmix.operators.outlines import from_shapes

__all__ = ["PerRow", "entry"]

# A use of an operator with a row's tokens (a product) or a row's token indices (a lookup).
Use = Callable[[Operator, Array], Array]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class PerRow(Operator):
    """An operator selected from stacks by slot, or the sum of all slots weighted by strengths.

    A negative slot selects nothing from a stack. Operators selected from several stacks are added.
    Of factors (L or R) a row selects at most one, and the identity without one.

    Args:
        stacks: Operators of one structure each, whose arrays have a leading axis of slots.
        picks: For each stack the selected slot (), or a strength for every slot (slots,).
        n_rows: The number of rows of the operators.
        n_cols: The number of columns of the operators.
        is_factor: Whether selecting nothing gives the identity instead of zero.
        is_transposed: Whether the operators are the transposes of those in the stacks.
        each: The average number of rows of a batch per slot.

    Example:
        >>> from jaxmix.operators import Diagonal
        >>> stack = Diagonal(jnp.array([[2.0, 3.0], [4.0, 5.0]]))
        >>> PerRow((stack,), (jnp.asarray(1),), 2, 2, True).dense().tolist()
        [[4.0, 0.0], [0.0, 5.0]]
        >>> PerRow((stack,), (jnp.asarray(-1),), 2, 2, True).dense().tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """

    stacks: tuple[Operator, ...]
    picks: tuple[Array, ...]
    n_rows: int = static()
    n_cols: int = static()
    is_factor: bool = static()
    is_transposed: bool = static(False)
    each: int = static(1)

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
        product = _grouped(_matmul, self.is_transposed, self.n_cols, self.is_factor, self.each)
        return product(x, self.stacks, self.picks)

    def __matmul__(self, x: Float[Array, "cols n"]) -> Float[Array, "rows n"]:
        return (x.T @ self.T).T

    def take_rows(self, at: Int[Array, " n"]) -> Float[Array, "n cols"]:
        if self.is_factor:
            return self.dense()[at]
        take = _grouped(_take_rows, self.is_transposed, self.n_cols, False, self.each)
        return take(at, self.stacks, self.picks)

    def rows(self, part: slice) -> Dense:
        return Dense(self.dense()[part])

    def flops(self) -> int:
        return sum(self._counts(lambda operator: operator.flops()))

    def matmul_flops(self, n: int) -> int:
        return sum(self._counts(lambda operator: operator.matmul_flops(n)))

    def _counts(self, count: Callable[[Operator], int]) -> list[int]:
        """Applies a count to one operator of each stack, using shapes alone."""
        return [from_shapes(lambda x: count(entry(x, 0)), stack) for stack in self.stacks]


def entry(stack: Any, slot: Any) -> Any:
    """Returns the operator in a slot.

    Args:
        stack: A pytree whose arrays have a leading axis of slots.
        slot: The index of the slot, traced or not, inside the stack.
    """
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, slot, 0, keepdims=False), stack)


def _is_slot(pick: Array) -> bool:
    """Whether a pick is the index of a slot and not an array of strengths."""
    return jnp.issubdtype(pick.dtype, jnp.integer)


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
    result = start
    for stack, pick in zip(stacks, picks, strict=True):
        if _is_slot(pick):
            own = use(entry(stack, jnp.maximum(pick, 0)))
            result = jnp.where(pick >= 0, own if is_factor else result + own, result)
        else:
            outputs = jax.vmap(use)(stack)
            result = result + jnp.tensordot(pick.astype(outputs.dtype), outputs, 1)
    return result


def _batch(
    use: Use, is_factor: bool, start: Array, x: Array, stacks: Any, picks: Any, each: int
) -> Array:
    """Applies the selected operators to a batch of rows; rows that select nothing cost nothing."""
    result = start
    for stack, pick in zip(stacks, picks, strict=True):
        if _is_slot(pick):
            result = _by_slot(use, is_factor, result, x, stack, pick, each)
        else:
            result = _by_strength(use, result, x, stack, pick)
    return result


def _by_slot(
    use: Use, is_factor: bool, result: Array, x: Array, stack: Any, pick: Array, each: int
) -> Array:
    """Applies to each row the operator in its slot.

    If most slots are used, one batched product handles up to `each` rows per slot and reads the
    whole stack. The remaining rows, or all rows if few slots are used, run one by one.
    """
    rows, slots = pick.shape[0], _count(stack)
    wanted = jnp.where(pick < 0, slots, pick)
    order = jnp.argsort(wanted, stable=True).astype(np.int32)
    wanted = wanted[order]
    first = jnp.searchsorted(wanted, jnp.arange(slots + 1, dtype=wanted.dtype)).astype(np.int32)

    numbers = jnp.arange(rows, dtype=np.int32)
    at = first[:slots, None] + jnp.arange(each, dtype=np.int32)[None]
    is_row = at < first[1:, None]
    idle = wanted == slots
    if slots > 1 and _is_batchable(stack):
        is_full = 2 * jnp.sum(is_row) >= slots * each

        def batched(result: Array) -> Array:
            targets = jnp.where(is_row, order[jnp.minimum(at, rows - 1)], rows).reshape(-1)
            inputs = x.at[targets].get(mode="clip")
            tokens = inputs.reshape(slots, each * x.shape[1], *x.shape[2:])
            out = jax.vmap(use)(stack, tokens).astype(result.dtype).reshape(-1, *result.shape[1:])
            ref = result.at[targets]
            return ref.set(out, mode="drop") if is_factor else ref.add(out, mode="drop")

        result = jax.lax.cond(is_full, batched, lambda result: result, result)
        idle = idle | (is_full & (numbers - first[wanted] < each))
    left = jnp.argsort(idle, stable=True)

    def add(k: Array, result: Array) -> Array:
        row = order[left[k]]
        own = use(entry(stack, pick[row]), entry(x, row)).astype(result.dtype)
        own = own if is_factor else entry(result, row) + own
        return jax.lax.dynamic_update_index_in_dim(result, own, row, 0)

    return jax.lax.fori_loop(0, jnp.sum(~idle), add, result)


def _by_strength(use: Use, result: Array, x: Array, stack: Any, pick: Array) -> Array:
    """Applies to each row all operators with a non-zero strength, one by one."""
    slots = _count(stack)
    idle = (pick == 0).reshape(-1)
    order = jnp.argsort(idle, stable=True)

    def add(k: Array, result: Array) -> Array:
        row, slot = order[k] // slots, order[k] % slots
        own = use(entry(stack, slot), entry(x, row)).astype(result.dtype)
        own = entry(result, row) + pick[row, slot].astype(result.dtype) * own
        return jax.lax.dynamic_update_index_in_dim(result, own, row, 0)

    return jax.lax.fori_loop(0, jnp.sum(~idle), add, result)


def _count(stack: Any) -> int:
    """Returns the number of slots of a stack, 1 if it has no arrays."""
    leaves = jax.tree.leaves(stack)
    return leaves[0].shape[0] if leaves else 1


def _is_batchable(stack: Any) -> bool:
    """Whether one product for all slots is faster. On CPU it is not for sparse operators."""
    leaves = jax.tree.leaves(stack, is_leaf=lambda x: isinstance(x, Sparse))
    return not any(isinstance(leaf, Sparse) for leaf in leaves)


@lru_cache
def _grouped(
    use: Any, is_transposed: bool, n_cols: int, is_factor: bool, each: int
) -> Callable[..., Array]:
    """Returns ``(x, stacks, picks) -> result`` for a use, with its batching rule and gradient."""
    apply = partial(use, is_transposed)

    def start(x: Array, stacks: Any) -> Array:
        if is_factor:
            return x
        floats = [leaf for leaf in (x, *jax.tree.leaves(stacks)) if _is_float(leaf)]
        return jnp.zeros((*x.shape[: x.ndim - (use is _matmul)], n_cols), jnp.result_type(*floats))

    def single(x: Array, stacks: Any, picks: Any) -> Array:
        return _single(lambda m: apply(m, x), is_factor, start(x, stacks), stacks, picks)

    @custom_vmap
    def grouped(x: Array, stacks: Any, picks: Any) -> Array:
        return single(x, stacks, picks)

    @grouped.def_vmap
    def batched(size: int, is_batched: Any, x: Array, stacks: Any, picks: Any) -> Any:
        if any(jax.tree.leaves(is_batched[1])) or not all(is_batched[2]):
            axes = jax.tree.map(lambda flag: 0 if flag else None, tuple(is_batched))
            return jax.vmap(single, axes, axis_size=size)(x, stacks, picks), True
        x = x if is_batched[0] else jnp.broadcast_to(x[None], (size, *x.shape))
        return _batch(apply, is_factor, start(x, stacks), x, stacks, picks, each), True

    @jax.custom_vjp
    def product(x: Array, stacks: Any, picks: Any) -> Array:
        return grouped(x, stacks, picks)

    def forward(x: Array, stacks: Any, picks: Any) -> Any:
        return grouped(x, stacks, picks), (x, stacks, picks)

    def backward(residuals: Any, cotangent: Array) -> Any:
        return jax.vjp(single, *residuals)[1](cotangent)

    product.defvjp(forward, backward)
    return product


def _is_float(leaf: Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating)
