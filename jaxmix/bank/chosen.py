"""An operator that each row of a batch chooses for itself, out of stacks that all rows share.

Under `jax.vmap` over the rows a plain choice would gather every row's factors into a copy of them
all before it multiplies; on CPU that took longer than the base's product. So the rule for such a
batch is written here: where most slots are wanted, one batched product reads the stack as it lies;
what is left goes through a loop over rows whose trip count is traced, which reads each row's
factors once and skips all others.
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

__all__ = ["Chosen", "entry"]

# What is done with an operator and a row's tokens, or the numbers of a row's tokens.
Use = Callable[[Operator, Array], Array]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Chosen(Operator):
    """One operator out of stacks, by the number of its slot; or a sum of all by strengths.

    A number below 0 chooses nothing of that stack. What is chosen from several stacks is added; but
    of factors a row chooses one at most, and without it has the identity.

    Args:
        stacks: Operators of one structure each, whose arrays have a further first axis of slots.
        picks: For each stack the slot () chosen, or a strength for every slot (slots,).
        n_rows: How many rows the operators have.
        n_cols: How many columns.
        is_factor: Whether nothing chosen is the identity, and not zero.
        turned: Whether it is the transposes of the stacks' operators.
        each: How many rows of a batch a slot takes on average, where all are taken.

    Example:
        >>> from jaxmix.operators import Diagonal
        >>> stack = Diagonal(jnp.array([[2.0, 3.0], [4.0, 5.0]]))
        >>> Chosen((stack,), (jnp.asarray(1),), 2, 2, True).dense().tolist()
        [[4.0, 0.0], [0.0, 5.0]]
        >>> Chosen((stack,), (jnp.asarray(-1),), 2, 2, True).dense().tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """

    stacks: tuple[Operator, ...]
    picks: tuple[Array, ...]
    n_rows: int = static()
    n_cols: int = static()
    is_factor: bool = static()
    turned: bool = static(False)
    each: int = static(1)

    @property
    def shape(self) -> tuple[int, int]:
        return self.n_rows, self.n_cols

    @property
    def T(self) -> "Chosen":
        return replace(self, n_rows=self.n_cols, n_cols=self.n_rows, turned=not self.turned)

    def dense(self) -> Array:
        dtype = self._dtype()
        start = (
            jnp.eye(self.n_rows, dtype=dtype) if self.is_factor else jnp.zeros(self.shape, dtype)
        )
        use = partial(_dense, self.turned)
        return _alone(use, self.is_factor, start, self.stacks, self.picks)

    def scaled(self, factor: Array | float) -> Product:
        return Product(Identity(self.n_rows).scaled(factor), self)

    def __rmatmul__(self, x: Float[Array, "n rows"]) -> Float[Array, "n cols"]:
        product = _grouped(_times, self.turned, self.n_cols, self.is_factor, self.each)
        return product(x, self.stacks, self.picks)

    def __matmul__(self, x: Float[Array, "cols n"]) -> Float[Array, "rows n"]:
        return (x.T @ self.T).T

    def take_rows(self, at: Int[Array, " n"]) -> Float[Array, "n cols"]:
        if self.is_factor:
            return self.dense()[at]
        picked = _grouped(_picked, self.turned, self.n_cols, False, self.each)
        return picked(at, self.stacks, self.picks)

    def rows(self, part: slice) -> Dense:
        return Dense(self.dense()[part])

    def flops(self) -> int:
        return sum(self._counted(lambda one: one.flops()))

    def matmul_flops(self, n: int) -> int:
        return sum(self._counted(lambda one: one.matmul_flops(n)))

    def _counted(self, count: Callable[[Operator], int]) -> list[int]:
        """A count for one operator of each stack, from shapes alone."""
        found: list[int] = []
        for stack in self.stacks:
            jax.eval_shape(lambda stack: found.append(count(entry(stack, 0))), stack)
        return found


def entry(stack: Any, slot: Any) -> Any:
    """The operator in a slot.

    Args:
        stack: A pytree whose arrays have a first axis of slots.
        slot: Its number, traced or not, inside the stack.
    """
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, slot, 0, keepdims=False), stack)


def _is_slot(pick: Array) -> bool:
    """Whether a pick is the number of a slot, and no strengths."""
    return jnp.issubdtype(pick.dtype, jnp.integer)


# ---------------------------------------------------------------- uses of an operator


def _times(turned: bool, one: Operator, x: Array) -> Array:
    return x @ (one.T if turned else one)


def _picked(turned: bool, one: Operator, at: Array) -> Array:
    return (one.T if turned else one).take_rows(at)


def _dense(turned: bool, one: Operator) -> Array:
    return (one.T if turned else one).dense()


# ---------------------------------------------------------------- one row, and a batch of rows


def _alone(
    use: Callable[[Operator], Array], is_factor: bool, start: Array, stacks: Any, picks: Any
) -> Array:
    """What one row makes of the operators that it chose."""
    now = start
    for stack, pick in zip(stacks, picks, strict=True):
        if _is_slot(pick):
            made = use(entry(stack, jnp.maximum(pick, 0)))
            now = jnp.where(pick >= 0, made if is_factor else now + made, now)
        else:
            every = jax.vmap(use)(stack)
            now = now + jnp.tensordot(pick.astype(every.dtype), every, 1)
    return now


def _together(
    use: Use, is_factor: bool, start: Array, x: Array, stacks: Any, picks: Any, each: int
) -> Array:
    """The same for a batch of rows, and only for those that chose something."""
    now = start
    for stack, pick in zip(stacks, picks, strict=True):
        if _is_slot(pick):
            now = _by_slot(use, is_factor, now, x, stack, pick, each)
        else:
            now = _by_strength(use, now, x, stack, pick)
    return now


def _by_slot(
    use: Use, is_factor: bool, now: Array, x: Array, stack: Any, pick: Array, each: int
) -> Array:
    """Each row by the operator in its slot.

    Where most slots are wanted, all of them take so many rows each in one batched product, which
    reads the stack as it lies; rows beyond, or all rows where few slots are wanted, go one by one.
    """
    rows, slots = pick.shape[0], _count(stack)
    wanted = jnp.where(pick < 0, slots, pick)
    order = jnp.argsort(wanted, stable=True).astype(np.int32)
    wanted = wanted[order]
    first = jnp.searchsorted(wanted, jnp.arange(slots + 1, dtype=wanted.dtype)).astype(np.int32)

    numbers = jnp.arange(rows, dtype=np.int32)
    at = first[:slots, None] + jnp.arange(each, dtype=np.int32)[None]
    there = at < first[1:, None]
    idle = wanted == slots
    if slots > 1 and _is_batchable(stack):
        is_full = 2 * jnp.sum(there) >= slots * each

        def batched(now: Array) -> Array:
            own = jnp.where(there, order[jnp.minimum(at, rows - 1)], rows).reshape(-1)
            inputs = x.at[own].get(mode="clip")
            tokens = inputs.reshape(slots, each * x.shape[1], *x.shape[2:])
            made = jax.vmap(use)(stack, tokens).astype(now.dtype).reshape(-1, *now.shape[1:])
            ref = now.at[own]
            return ref.set(made, mode="drop") if is_factor else ref.add(made, mode="drop")

        now = jax.lax.cond(is_full, batched, lambda now: now, now)
        idle = idle | (is_full & (numbers - first[wanted] < each))
    left = jnp.argsort(idle, stable=True)

    def add(k: Array, now: Array) -> Array:
        row = order[left[k]]
        made = use(entry(stack, pick[row]), entry(x, row)).astype(now.dtype)
        made = made if is_factor else entry(now, row) + made
        return jax.lax.dynamic_update_index_in_dim(now, made, row, 0)

    return jax.lax.fori_loop(0, jnp.sum(~idle), add, now)


def _by_strength(use: Use, now: Array, x: Array, stack: Any, pick: Array) -> Array:
    """Each row by all operators of which it wants something, one by one."""
    slots = _count(stack)
    idle = (pick == 0).reshape(-1)
    order = jnp.argsort(idle, stable=True)

    def add(k: Array, now: Array) -> Array:
        row, slot = order[k] // slots, order[k] % slots
        made = use(entry(stack, slot), entry(x, row)).astype(now.dtype)
        made = entry(now, row) + pick[row, slot].astype(now.dtype) * made
        return jax.lax.dynamic_update_index_in_dim(now, made, row, 0)

    return jax.lax.fori_loop(0, jnp.sum(~idle), add, now)


def _count(stack: Any) -> int:
    """How many slots a stack has; 1 where it has no arrays and all are alike."""
    leaves = jax.tree.leaves(stack)
    return leaves[0].shape[0] if leaves else 1


def _is_batchable(stack: Any) -> bool:
    """Whether one product for all slots is faster: not where it scatters, as measured on CPU."""
    held = jax.tree.leaves(stack, is_leaf=lambda x: isinstance(x, Sparse))
    return not any(isinstance(one, Sparse) for one in held)


@lru_cache
def _grouped(
    use: Any, turned: bool, n_cols: int, is_factor: bool, each: int
) -> Callable[..., Array]:
    """A use of what was chosen, ``(x, stacks, picks)``, with its rule for a batch of rows."""
    act = partial(use, turned)

    def start(x: Array, stacks: Any) -> Array:
        if is_factor:
            return x
        floats = [leaf for leaf in (x, *jax.tree.leaves(stacks)) if _is_float(leaf)]
        return jnp.zeros((*x.shape[: x.ndim - (use is _times)], n_cols), jnp.result_type(*floats))

    def alone(x: Array, stacks: Any, picks: Any) -> Array:
        return _alone(lambda one: act(one, x), is_factor, start(x, stacks), stacks, picks)

    @custom_vmap
    def grouped(x: Array, stacks: Any, picks: Any) -> Array:
        return alone(x, stacks, picks)

    @grouped.def_vmap
    def batched(size: int, is_batched: Any, x: Array, stacks: Any, picks: Any) -> Any:
        if any(jax.tree.leaves(is_batched[1])) or not all(is_batched[2]):
            axes = jax.tree.map(lambda one: 0 if one else None, tuple(is_batched))
            return jax.vmap(alone, axes, axis_size=size)(x, stacks, picks), True
        x = x if is_batched[0] else jnp.broadcast_to(x[None], (size, *x.shape))
        return _together(act, is_factor, start(x, stacks), x, stacks, picks, each), True

    @jax.custom_vjp
    def product(x: Array, stacks: Any, picks: Any) -> Array:
        return grouped(x, stacks, picks)

    def forward(x: Array, stacks: Any, picks: Any) -> Any:
        return grouped(x, stacks, picks), (x, stacks, picks)

    def backward(kept: Any, ahead: Array) -> Any:
        return jax.vjp(alone, *kept)[1](ahead)

    product.defvjp(forward, backward)
    return product


def _is_float(leaf: Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating)
