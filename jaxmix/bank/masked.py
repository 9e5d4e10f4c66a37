"""The batched form of `PerRow` on accelerators: products without branches, sorts or loops.

All rows are multiplied with the factors of all members in one product. A mask then keeps each row's
own results: the thin ones between the two factors of a low rank, so the second product reads all
members' factors once as well. Operators without a thin inside are masked on entry, or each row
gathers its own. So do large batches of many members, which would multiply too much for the mask.

The mask multiplies other members' second factors by zero, so these must be finite: ``0 · inf`` is
NaN. `stacks` sees to that.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmix.bank.slots import Selection, count_slots
from jaxmix.operators import (
    BlockDiagonal,
    Hadamard,
    Identity,
    Kronecker,
    LowRank,
    Product,
    Sum,
)

__all__ = ["apply_by_masks"]

# The largest rank r₁r₂ at which a Hadamard product of two low ranks is used as one low rank.
_KHATRI_RAO_RANK = 256

# What a gathered copy of an operator costs, in operations a number: it is written and read in
# float32 at 240 operations a byte (v5e), and its small products fill half of a matrix unit.
_GATHERED = 2 * 3 * 4 * 240


def apply_by_masks(
    is_transposed: bool,
    is_lookup: bool,
    is_factor: bool,
    start: Array,
    x: Array,
    stacks: Sequence[Any],
    picks: Sequence[Selection],
) -> Array:
    """Applies the selected operators to a batch of rows.

    Args:
        is_transposed: Whether the operators are the transposes of those in the stacks.
        is_lookup: Whether the input holds indices of rows to look up instead of tokens.
        is_factor: Whether the result of a row that selects something replaces its `start`.
        start: The result for rows that select nothing (rows, tokens, cols).
        x: The input, tokens (rows, tokens, n) or indices (rows, tokens).
        stacks: The stacks of operators.
        picks: What the rows select from each stack.

    Returns:
        The result, with the shape of `start`.
    """
    result = start
    for stack, pick in zip(stacks, picks, strict=True):
        if is_lookup:
            output = _by_operator(x, stack, pick, is_transposed, is_lookup=True)
        else:
            output = _multiplied(x, stack, pick, is_transposed)
        output = output.astype(result.dtype)
        if is_factor and pick.slot is not None:
            result = jnp.where((pick.slot >= 0)[:, None, None], output, result)
        else:
            result = result + output
    return result


def _multiplied(
    x: Float[Array, "rows tokens n"], stack: Any, pick: Selection, is_transposed: bool
) -> Float[Array, "rows tokens cols"]:
    """``x M`` of the selected slots, or ``Σₛ strengthₛ · x Mₛ``; or of the transposes."""
    if pick.slot is not None and not _is_cheaper_masked(stack, x.shape[1]):
        return _by_operator(x, stack, pick, is_transposed, is_lookup=False)
    match stack:
        case LowRank():
            return _by_low_rank(x, stack, pick, is_transposed)
        case Hadamard() if stack.left.a.shape[1] * stack.right.a.shape[1] <= _KHATRI_RAO_RANK:
            low = jax.vmap(Hadamard.low_rank)(stack)
            return _by_low_rank(x, low, pick, is_transposed)
        case Kronecker():
            return _by_kronecker(x, stack, pick, is_transposed)
        case BlockDiagonal():
            return _by_blocks(x, stack, pick, is_transposed)
        case Sum():
            return sum(
                (_multiplied(x, term, pick, is_transposed) for term in stack.terms),
                start=jnp.zeros((), x.dtype),
            )
        case Product() if pick.slot is not None:
            first, second = stack.first, stack.second
            if is_transposed:
                first, second = second, first
            inner = _multiplied(x, first, pick, is_transposed)
            return _multiplied(inner, second, pick, is_transposed)
        case Identity():
            return x
        case _:
            return _by_operator(x, stack, pick, is_transposed, is_lookup=False)


def _is_cheaper_masked(stack: Any, tokens: int) -> bool:
    """Whether products with all members' operators cost less than gathering each row's own."""
    operator = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), stack)
    if not isinstance(operator, LowRank | Hadamard | Kronecker | BlockDiagonal):
        return True
    size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(operator))
    return tokens * (count_slots(stack) - 1) * operator.matmul_flops(1) <= _GATHERED * size


def _by_low_rank(x: Array, stack: LowRank, pick: Selection, is_transposed: bool) -> Array:
    if is_transposed:
        inner = _kept(jnp.einsum("bti,sri->btsr", x, stack.a), pick, 2)
        return jnp.einsum("btsr,sor->bto", inner, stack.b)
    inner = _kept(jnp.einsum("bti,sir->btsr", x, stack.b), pick, 2)
    return jnp.einsum("btsr,sro->bto", inner, stack.a)


def _by_kronecker(x: Array, stack: Kronecker, pick: Selection, is_transposed: bool) -> Array:
    """``x (X ⊗ Y)`` with all members' Y, a mask, and all members' X; or X first."""
    first, second = stack.x, stack.y
    if is_transposed:
        first, second = first.swapaxes(1, 2), second.swapaxes(1, 2)
    (_, rows, m), (_, k, n) = first.shape, second.shape
    parts = x.reshape(*x.shape[:2], rows, k)
    if n * rows * (k + m) <= m * k * (rows + n):
        inner = _kept(jnp.einsum("btlk,skn->btlsn", parts, second), pick, 3)
        out = jnp.einsum("btlsn,slm->btmn", inner, first)
    else:
        inner = _kept(jnp.einsum("btlk,slm->btksm", parts, first), pick, 3)
        out = jnp.einsum("btksm,skn->btmn", inner, second)
    return out.reshape(*x.shape[:2], m * n)


def _by_blocks(x: Array, stack: BlockDiagonal, pick: Selection, is_transposed: bool) -> Array:
    """Each block contracts over its own part of all members' masked tokens."""
    slots, k, size, _ = stack.blocks.shape
    parts = x.reshape(*x.shape[:2], stack.copies, k, 1, size)
    parts = _kept(jnp.broadcast_to(parts, (*parts.shape[:4], slots, size)), pick, 4)
    pattern = "btcksa,skda->btckd" if is_transposed else "btcksa,skad->btckd"
    return jnp.einsum(pattern, parts, stack.blocks).reshape(x.shape)


def _kept(results: Array, pick: Selection, axis: int) -> Array:
    """The results of each row's own slot, or of all slots times their strengths.

    The others are zero, even if a result overflows.

    Args:
        results: The results (rows, ..., slots, ...).
        pick: What the rows select.
        axis: The axis of slots.
    """
    zero = jnp.zeros((), results.dtype)
    shape = [1] * results.ndim
    shape[0] = results.shape[0]
    if pick.slot is not None:
        # With the results' shape it fuses into the product; a smaller mask is a kernel of its own.
        at = jax.lax.broadcasted_iota(pick.slot.dtype, results.shape, axis)
        return jnp.where(
            at == jnp.broadcast_to(pick.slot.reshape(shape), results.shape), results, zero
        )
    assert pick.strengths is not None
    shape[axis] = results.shape[axis]
    share = pick.strengths.astype(results.dtype).reshape(shape)
    return jnp.where(share != 0, results * share, zero)


def _by_operator(
    x: Array, stack: Any, pick: Selection, is_transposed: bool, *, is_lookup: bool
) -> Array:
    """Each row gathers its own operator; with strengths all rows use all operators."""

    def use(operator: Any, x: Array) -> Array:
        operator = operator.T if is_transposed else operator
        return operator.take_rows(x) if is_lookup else x @ operator

    if pick.slot is not None:
        slot = pick.slot
        operators = jax.tree.map(lambda leaf: jnp.take(leaf, jnp.maximum(slot, 0), axis=0), stack)
        out = jax.vmap(use)(operators, x)
        return jnp.where((slot >= 0)[:, None, None], out, jnp.zeros((), out.dtype))
    every = jax.vmap(lambda operator: jax.vmap(lambda row: use(operator, row))(x), out_axes=1)(
        stack
    )
    return _kept(every, pick, 1).sum(1)
