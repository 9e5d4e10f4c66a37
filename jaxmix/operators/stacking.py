"""Operators of one role, one a layer or a row, as one whose arrays have a further first axis.

Such a stack is no operator by itself: under `jax.vmap` each of its entries is. Entries may be of
different structures and ranks. Each structure has a slot; an entry without it holds zeros there, or
ones along the diagonal where operators are multiplied; ranks and counts are padded with zeros.
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
from jaxmix.operators.compound import Product, Sum
from jaxmix.operators.lowrank import Hadamard, LowRank
from jaxmix.operators.permutation import Permutation
from jaxmix.operators.simple import Dense, Diagonal, Identity, Zero
from jaxmix.operators.sparse import Sparse

__all__ = ["stack_factors", "stack_terms"]


def stack_terms(entries: Sequence[Operator]) -> Operator:
    """A stack of operators that are added to something: one that is missing is zero.

    Args:
        entries: The operators, at least one, all of one shape (rows, cols).

    Returns:
        A stack: a `Zero`, one structure, or a `Sum` of them.

    Example:
        >>> one, two = (LowRank(jnp.ones((3, r)), jnp.ones((r, 2))) for r in (1, 2))
        >>> both = stack_terms([one, two, Zero(3, 2)])
        >>> both.a.shape, jax.vmap(lambda x: x.dense())(both)[:, 0, 0].tolist()
        ((3, 2, 2), [1.0, 2.0, 0.0])
    """
    slots: dict[Hashable, list[Operator | None]] = {}
    for i, entry in enumerate(entries):
        seen: dict[Hashable, int] = {}
        for term in entry.terms if isinstance(entry, Sum) else (entry,):
            if isinstance(term, Zero):
                continue
            if isinstance(term, Identity | Permutation):  # with no numbers that could be zero
                term = term.scaled(1.0)
            form = _form(term)
            seen[form] = seen.get(form, 0) + 1
            slots.setdefault((form, seen[form]), [None] * len(entries))[i] = term
    if not slots:
        return entries[0]
    terms = tuple(_filled(slot, _zero) for slot in slots.values())
    return terms[0] if len(terms) == 1 else Sum(terms)


def stack_factors(entries: Sequence[Operator]) -> Operator:
    """A stack of square operators that something is multiplied by: one that is missing is one.

    Args:
        entries: The operators, at least one, all of one shape (n, n).

    Returns:
        A stack: an `Identity`, one structure, or a `Product` of them, of which each entry has one
        that does something.

    Example:
        >>> both = stack_factors([Diagonal(jnp.array([2.0, 3.0])), Identity(2)])
        >>> jax.vmap(lambda m: m @ jnp.ones((2, 1)))(both)[..., 0].tolist()
        [[2.0, 3.0], [1.0, 1.0]]
    """
    slots: dict[Hashable, list[Operator | None]] = {}
    for i, entry in enumerate(entries):
        if isinstance(entry, Identity):
            continue
        if isinstance(entry, Zero) or _one(entry) is None:
            entry = Dense(entry.dense())
        slots.setdefault(_form(entry), [None] * len(entries))[i] = entry
    if not slots:
        return entries[0]
    return reduce(Product, (_filled(slot, _one) for slot in slots.values()))


def _form(x: Operator) -> Hashable:
    """What two operators must have in common to lie in one stack: all but ranks and counts."""
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


def _filled(slot: Sequence[Operator | None], missing: Callable[[Any], Any]) -> Operator:
    """A slot's operators stacked, with what stands for one that is missing."""
    there = next(entry for entry in slot if entry is not None)
    return _stacked([missing(there) if entry is None else entry for entry in slot])


def _stacked(entries: Sequence[Any]) -> Any:
    """Operators of one form as one with a further first axis."""
    first = entries[0]
    match first:
        case LowRank():
            b, a = _padded([x.b for x in entries], 1), _padded([x.a for x in entries], 0)
            return LowRank(jnp.stack(b), jnp.stack(a))
        case Hadamard():
            return Hadamard(
                _stacked([x.left for x in entries]), _stacked([x.right for x in entries])
            )
        case Sparse():
            values = jnp.stack(_padded([x.values for x in entries], 0))
            return Sparse(values, jnp.stack(_padded([x.indices for x in entries], 1)), *first.shape)
        case Sum():
            return Sum(
                tuple(_stacked(terms) for terms in zip(*(x.terms for x in entries), strict=True))
            )
        case Product():
            return Product(
                _stacked([x.first for x in entries]), _stacked([x.second for x in entries])
            )
        case _:
            return jax.tree.map(lambda *leaves: jnp.stack(leaves), *entries)


def _padded(arrays: Sequence[Array], axis: int) -> list[Array]:
    """Arrays with zeros at the end of an axis, so that all are as long as the longest."""
    size = max(x.shape[axis] for x in arrays)

    def one(x: Array) -> Array:
        widths = [(0, size - n if k == axis else 0) for k, n in enumerate(x.shape)]
        return jnp.pad(jnp.asarray(x), widths)

    return [one(x) for x in arrays]


def _zero(x: Operator) -> Operator:
    """The zero matrix in the form of another."""
    return jax.tree.map(jnp.zeros_like, x)


def _one(x: Operator) -> Any:
    """The identity in the form of another; None where that form has none."""
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
            first, second = _one(x.first), _one(x.second)
            return None if first is None or second is None else Product(first, second)
        case Sum():
            ones = [_one(term) for term in x.terms]
            may = [i for i, one in enumerate(ones) if one is not None]
            if not may:
                return None
            # An identity has no numbers that could be zero, so it is the one that stays.
            at = next((i for i in may if isinstance(x.terms[i], Identity | Permutation)), may[0])
            terms = enumerate(x.terms)
            return Sum(tuple(ones[i] if i == at else _zero(term) for i, term in terms))
        case _:
            return None
