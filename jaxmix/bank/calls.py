"""Calls of a bank: runs a function on a batch in which each row has its own mix."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

from jaxmix.bank.assignment import is_unknown
from jaxmix.bank.building import factored_by_name
from jaxmix.bank.leaves import BankLeaf
from jaxmix.bank.routing import route, schedules
from jaxmix.bank.slots import Selection
from jaxmix.errors import (
    DenseWeightWarning,
    LayoutError,
    ShapeError,
    UnsupportedError,
    listing,
)
from jaxmix.unmerged.attaching import is_factored
from jaxmix.unmerged.running import quietly_factored
from jaxmix.unmerged.uses import Use, refusal, warning
from jaxmix.unmerged.uses import described as described_array
from jaxmix.unmerged.weight import How

__all__ = ["Slots", "run"]


@dataclass(frozen=True)
class Slots:
    """The stacks of a bank.

    Args:
        leaves: The leaves that members change.
        owners: The member's number that owns each slot of each stack (stacks, slots); -1 if free.
        broken: Whether a slot's operator held inf or NaN (stacks, slots).
        taken: Whether each number belongs to a member (capacity,).
    """

    leaves: tuple[BankLeaf, ...]
    owners: Array
    broken: Array
    taken: Array


def run(
    fn: Callable[..., Any],
    params: Any,
    batch: Any,
    pick: Any,
    slots: Slots,
    blended: Callable[[Any, Array], Any],
    how: How,
) -> Any:
    """Runs a function on a batch in which each row has its own mix.

    Args:
        fn: The function of params and a batch.
        params: The base.
        batch: A pytree whose leaves have rows as their first axis.
        pick: The member's number of each row (rows,), or a strength for each member (rows,
            members).
        slots: The leaves that members change, and the owners of their slots.
        blended: Returns the params with all members attached at given strengths, for leaves that
            are not linear.
        how: How products are computed, as in `jaxmix.factored`.

    Returns:
        The function's result, with rows as the first axis.

    Raises:
        UnsupportedError: With ``how="factored"``, if a use of a weight has no factored form.
        LayoutError: If the params are not those of the bank.
        ShapeError: If the number of rows differs in the batch, in `pick` or in the result.
    """
    rows = _rows(batch)
    if not rows:
        raise ShapeError("the batch has no rows, expected at least one.")
    if pick.shape[0] != rows:
        raise ShapeError(
            f"who has {pick.shape[0]} entries, but the batch has {rows} rows, expected one entry "
            "per row."
        )
    leaves, taken = slots.leaves, slots.taken
    params = _matching(params, leaves)
    numbers = {name: i for i, name in enumerate(factored_by_name(params))}
    bases, tree = jax.tree.flatten(params)
    is_blend = jnp.issubdtype(pick.dtype, jnp.floating)
    rows_per_slot = max(1, rows // max(taken.shape[0], 1))
    stacked = [leaf for leaf in leaves if leaf.is_linear or not is_blend]
    uses: dict[Use, None] = {}
    for leaf in stacked:
        if leaf.reason and not leaf.is_vector:
            uses[Use(leaf.name, described_array(bases[numbers[leaf.name]]), leaf.reason)] = None

    def run_row(pick: Array, routes: Selection, row: Any) -> Any:
        flat = list(bases)
        if len(stacked) < len(leaves):
            flat = jax.tree.leaves(blended(params, pick), is_leaf=is_factored)
        for leaf in stacked:
            at = numbers[leaf.name]
            flat[at] = leaf.of_row(bases[at], routes, rows_per_slot, orders)
        single = jax.tree.map(lambda x: x[None], row)
        on_leaves = quietly_factored(fn, how if how == "dense" else "factored", uses.setdefault)
        return jax.tree.map(_single, on_leaves(tree.unflatten(flat), single))

    pick = jnp.asarray(pick)
    routed = route(slots.owners, slots.broken, pick)
    orders = schedules([x for leaf in leaves for x in leaf.all_stacks], routed, rows_per_slot)
    out = jax.vmap(run_row)(pick, routed, jax.tree.map(jnp.asarray, batch))
    if uses and how == "factored":
        raise UnsupportedError(refusal(tuple(uses), "Bank"))
    if uses and how == "auto":
        text = warning(tuple(uses), "Bank", "for each row")
        warnings.warn(text, DenseWeightWarning, stacklevel=3)
    if is_blend or not isinstance(pick, Tracer):
        return out
    wrong = is_unknown(pick, taken)
    return jax.tree.map(lambda x: _with_nan(x, wrong), out)


def _matching(params: Any, leaves: Sequence[BankLeaf]) -> Any:
    """Returns the params, untied if the bank's were, and checks that they are the bank's."""
    names = factored_by_name(params)
    if any(leaf.name not in names for leaf in leaves):
        if callable(untied := getattr(params, "untied", None)):
            params = untied()
            names = factored_by_name(params)
    wrong = [
        f"{leaf.name}: found {shape or 'no leaf'}, expected shape {leaf.leaf_shape}"
        for leaf in leaves
        if (shape := getattr(names.get(leaf.name), "shape", None)) != leaf.leaf_shape
    ]
    if wrong:
        raise LayoutError(
            f"the params differ from those that the bank was made for:{listing(wrong)}\nCall it "
            "with the original params, or make a bank for the new ones."
        )
    return params


def _rows(batch: Any) -> int:
    """Returns the number of rows of a batch."""
    paths, _ = jax.tree_util.tree_flatten_with_path(batch)
    shapes = {jax.tree_util.keystr(path) or "the batch": np.shape(leaf) for path, leaf in paths}
    counts = {shape[0] if shape else None for shape in shapes.values()}
    if len(counts) != 1 or None in counts:
        lines = [f"{name}: {shape}" for name, shape in shapes.items()]
        raise ShapeError(
            "the batch's leaves differ in their first axis, expected the same number of rows in "
            f"all:{listing(lines) or ' it has no leaves'}"
        )
    return counts.pop() or 0


def _single(out: Any) -> Array:
    """Returns the only row of a result for a batch of one."""
    if np.shape(out)[:1] != (1,):
        raise ShapeError(
            f"the function returns an array of shape {np.shape(out)} for a batch of one row, "
            "expected rows as the first axis. Take a mean over the batch outside the function."
        )
    return jnp.asarray(out)[0]


def _with_nan(x: Array, wrong: Array) -> Array:
    """Sets the rows of unknown members to NaN, for numbers that are traced."""
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        return x
    return jnp.where(wrong.reshape(-1, *[1] * (x.ndim - 1)), np.nan, x)
