"""Stacks of operators: one operator per layer or row, with arrays that have a leading stack axis.

A stack is not an operator itself, but each of its entries is one under `jax.vmap`. Entries may have
different structures and ranks. Each structure has a slot. An entry without that structure holds the
zero matrix in the slot, or the identity if operators are multiplied. Ranks and counts are padded
with zeros.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxmix.operators.base import Operator
from jaxmix.operators.blocks import BlockDiagonal
from jaxmix.operators.compound import Product, Sum, terms
from jaxmix.operators.lowrank import Hadamard, LowRank
from jaxmix.operators.permutation import Permutation
from jaxmix.operators.simple import Dense, Diagonal, Identity, Zero
from jaxmix.operators.sparse import Sparse

__all__ = ["stack_factors", "stack_terms"]


def stack_terms(entries: Sequence[Operator]) -> Operator:
    """Stacks operators that are added to something; a missing structure counts as zero.

    Args:
        entries: The operators, at least one, all of one shape (rows, cols).

    Returns:
        The stack: a `Zero`, one structure, or a `Sum` of several.

    Example:
        >>> first, second = (LowRank(jnp.ones((3, r)), jnp.ones((r, 2))) for r in (1, 2))
        >>> stack = stack_terms([first, second, Zero(3, 2)])
        >>> stack.a.shape, jax.vmap(lambda x: x.dense())(stack)[:, 0, 0].tolist()
        ((3, 2, 2), [1.0, 2.0, 0.0])
    """
    slots: dict[Hashable, list[Operator | None]] = {}
    for i, entry in enumerate(entries):
        seen: dict[Hashable, int] = {}
        for term in terms(entry):
            if isinstance(term, Zero):
                continue
            if isinstance(term, Identity | Permutation):  # they hold no values that could be zero
                term = term.scaled(1.0)
            form = _form(term)
            seen[form] = seen.get(form, 0) + 1
            slots.setdefault((form, seen[form]), [None] * len(entries))[i] = term
    if not slots:
        return entries[0]
    stacks = tuple(_fill_slot(slot, _zeros_like) for slot in slots.values())
    return stacks[0] if len(stacks) == 1 else Sum(stacks)


def stack_factors(entries: Sequence[Operator]) -> Operator:
    """Stacks square operators that something is multiplied with; a missing one is the identity.

    Args:
        entries: The operators, at least one, all of one shape (n, n).

    Returns:
        The stack: an `Identity`, one structure, or a `Product` of several. In a product, at most
        one factor of each entry differs from the identity.

    Example:
        >>> stack = stack_factors([Diagonal(jnp.array([2.0, 3.0])), Identity(2)])
        >>> jax.vmap(lambda m: m @ jnp.ones((2, 1)))(stack)[..., 0].tolist()
        [[2.0, 3.0], [1.0, 1.0]]
    """
    slots: dict[Hashable, list[Operator | None]] = {}
    for i, entry in enumerate(entries):
        if isinstance(entry, Identity):
            continue
        if isinstance(entry, Zero) or _identity_like(entry) is None:
            entry = Dense(entry.dense())
        slots.setdefault(_form(entry), [None] * len(entries))[i] = entry
    if not slots:
        return entries[0]
    return reduce(Product, (_fill_slot(slot, _identity_like) for slot in slots.values()))


def _form(x: Operator) -> Hashable:
    """Returns a key that is equal for operators that fit one stack; ranks and counts may differ."""
    match x:
        case LowRank() | Hadamard() | Sparse():
            return type(x).__name__
        case Sum():
            return ("Sum", *map(_form, x.terms))
        case Product():
            return ("Product", _form(x.first), _form(x.second))
        case _:
            leaves, structure = jax.tree.flatten(x)
            return structure, tuple(jnp.shape(leaf) for leaf in leaves)


def _fill_slot(slot: Sequence[Operator | None], missing: Callable[[Any], Any]) -> Operator:
    """Stacks a slot's operators; `missing` makes the stand-in for absent ones."""
    example = next(entry for entry in slot if entry is not None)
    return _stack([missing(example) if entry is None else entry for entry in slot])


def _stack(entries: Sequence[Any]) -> Any:
    """Stacks operators of one form along a new leading axis."""
    first = entries[0]
    match first:
        case LowRank():
            b, a = _pad([x.b for x in entries], 1), _pad([x.a for x in entries], 0)
            return LowRank(jnp.stack(b), jnp.stack(a))
        case Hadamard():
            return Hadamard(_stack([x.left for x in entries]), _stack([x.right for x in entries]))
        case Sparse():
            values = jnp.stack(_pad([x.values for x in entries], 0))
            return Sparse(values, jnp.stack(_pad([x.indices for x in entries], 1)), *first.shape)
        case Sum():
            return Sum(
                tuple(_stack(column) for column in zip(*(x.terms for x in entries), strict=True))
            )
        case Product():
            return Product(_stack([x.first for x in entries]), _stack([x.second for x in entries]))
        case _:
            return jax.tree.map(lambda *leaves: jnp.stack(leaves), *entries)


def _pad(arrays: Sequence[Array], axis: int) -> list[Array]:
    """Pads arrays with zeros at the end of an axis to the length of the longest."""
    size = max(x.shape[axis] for x in arrays)

    def pad(x: Array) -> Array:
        widths = [(0, size - n if k == axis else 0) for k, n in enumerate(x.shape)]
        return jnp.pad(jnp.asarray(x), widths)

    return [pad(x) for x in arrays]


def _zeros_like(x: Operator) -> Operator:
    """Returns the zero matrix in the form of another operator."""
    return jax.tree.map(jnp.zeros_like, x)


def _identity_like(x: Operator) -> Any:
    """Returns the identity in the form of another operator; None if that form has no identity."""
    match x:
        case Identity():
            return x
        case Diagonal():
            return replace(x, d=jnp.ones_like(x.d))
        case BlockDiagonal():
            eye = jnp.eye(x.block_size, dtype=x.blocks.dtype)
            return BlockDiagonal(jnp.broadcast_to(eye, x.blocks.shape), x.copies)
        case Dense():
            return Dense(jnp.eye(x.shape[0], dtype=x.matrix.dtype))
        case Permutation():
            return Permutation(jnp.arange(x.order.shape[0], dtype=x.order.dtype))
        case Product():
            first, second = _identity_like(x.first), _identity_like(x.second)
            return None if first is None or second is None else Product(first, second)
        case Sum():
            identities = [_identity_like(term) for term in x.terms]
            candidates = [i for i, identity in enumerate(identities) if identity is not None]
            if not candidates:
                return None
            # `Identity` and `Permutation` hold no values that could be zero, so they must stay.
            fixed = (i for i in candidates if isinstance(x.terms[i], Identity | Permutation))
            at = next(fixed, candidates[0])
            return Sum(
                tuple(
                    identities[i] if i == at else _zeros_like(term)
                    for i, term in enumerate(x.terms)
                )
            )
        case _:
            return None
