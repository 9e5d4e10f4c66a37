"""A call of a bank: the params as each row sees them, and rows in and out."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

from jaxmix.adapter import Mixable
from jaxmix.bank.leaves import Kept
from jaxmix.bank.making import every, factored_by_name
from jaxmix.bank.who import wrong_number
from jaxmix.errors import LayoutError, ShapeError, UnsupportedError, listing
from jaxmix.placement.layout import Layout
from jaxmix.unmerged import attach, factored
from jaxmix.unmerged.attaching import is_factored

__all__ = ["attached", "run"]


def run(
    fn: Callable[..., Any],
    params: Any,
    batch: Any,
    pick: Any,
    leaves: Sequence[Kept],
    taken: Array,
    blended: Callable[[Any, Array], Any],
) -> Any:
    """A function on a batch of which each row has its own mix.

    Args:
        fn: the function of params and a batch.
        params: the base.
        batch: a pytree whose leaves have rows as their first axis.
        pick: for each row its member (rows,), or a strength for each member (rows, members).
        leaves: what members do.
        taken: whether there is a member of each number.
        blended: the params with all members attached at strengths, for leaves that are not linear.

    Returns:
        The function's result, rows first.

    Raises:
        LayoutError: if the params are not those of the bank.
        ShapeError: if rows are not the same in all of the batch, in pick and in the result.
    """
    rows = _rows(batch)
    if not rows:
        raise ShapeError("the batch has no rows, expected one at the least.")
    if pick.shape[0] != rows:
        raise ShapeError(
            f"who says it for {pick.shape[0]} rows, but the batch has {rows}, expected one for "
            "each."
        )
    params = _fit(params, leaves)
    numbers = {name: i for i, name in enumerate(factored_by_name(params))}
    bases, tree = jax.tree.flatten(params)
    is_blend = jnp.issubdtype(pick.dtype, jnp.floating)
    each = max(1, rows // max(taken.shape[0], 1))
    alone = [leaf for leaf in leaves if leaf.is_linear or not is_blend]

    def one(pick: Array, row: Any) -> Any:
        flat = list(bases)
        if len(alone) < len(leaves):
            flat = jax.tree.leaves(blended(params, pick), is_leaf=is_factored)
        for leaf in alone:
            flat[numbers[leaf.name]] = leaf.of_row(bases[numbers[leaf.name]], pick, each)
        single = jax.tree.map(lambda x: x[None], row)
        return jax.tree.map(_single, factored(fn, "factored")(tree.unflatten(flat), single))

    pick = jnp.asarray(pick)
    out = jax.vmap(one)(pick, jax.tree.map(jnp.asarray, batch))
    if is_blend or not isinstance(pick, Tracer):
        return out
    wrong = wrong_number(pick, taken)
    return jax.tree.map(lambda x: _blotted(x, wrong), out)


def _fit(params: Any, leaves: Sequence[Kept]) -> Any:
    """The params, untied as the bank's were."""
    names = factored_by_name(params)
    if any(leaf.name not in names for leaf in leaves):
        if callable(untied := getattr(params, "untied", None)):
            params = untied()
            names = factored_by_name(params)
    lost = [
        f"{leaf.name}: the bank's has shape {leaf.leaf_shape}, found {shape or 'none'}"
        for leaf in leaves
        if (shape := getattr(names.get(leaf.name), "shape", None)) != leaf.leaf_shape
    ]
    if lost:
        raise LayoutError(
            f"the params are not those for which the bank was made:{listing(lost)}\nCall it with "
            "these, or make a bank for the new ones."
        )
    return params


def attached(
    params: Any,
    members: Mapping[str, Mixable] | None,
    strengths: Sequence[Array],
    layout: Layout | str | None,
    leaves: Sequence[Kept],
) -> Any:
    """The params with all members attached, in order, each at its strength.

    Raises:
        UnsupportedError: if nobody knows the members.
    """
    if members is None:
        leaf = next(leaf.name for leaf in leaves if not leaf.is_linear)
        raise UnsupportedError(
            "a strength for each member, of a bank that is an argument of a traced function and "
            f"whose members do more than add to the weight (at {leaf}). Make it with Bank(…, "
            "blend=True)."
        )
    return attach(params, every(members, strengths), layout=layout)


def _rows(batch: Any) -> int:
    """How many rows a batch has."""
    paths, _ = jax.tree_util.tree_flatten_with_path(batch)
    shapes = {jax.tree_util.keystr(path) or "the batch": np.shape(leaf) for path, leaf in paths}
    counts = {shape[0] if shape else None for shape in shapes.values()}
    if len(counts) != 1 or None in counts:
        lines = [f"{name}: {shape}" for name, shape in shapes.items()]
        raise ShapeError(
            "the batch's leaves differ in their first axis, expected the same rows in all of them:"
            f"{listing(lines) or ' it has none'}"
        )
    return counts.pop() or 0


def _single(out: Any) -> Array:
    """The row of a result for a batch of one."""
    if np.shape(out)[:1] != (1,):
        raise ShapeError(
            f"the function gives an array {np.shape(out)} for a batch of one row, expected rows as "
            "the first axis. A mean over the batch belongs outside."
        )
    return jnp.asarray(out)[0]


def _blotted(x: Array, wrong: Array) -> Array:
    """NaN in the rows of traced numbers that are of no member."""
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        return x
    return jnp.where(wrong.reshape(-1, *[1] * (x.ndim - 1)), np.nan, x)
