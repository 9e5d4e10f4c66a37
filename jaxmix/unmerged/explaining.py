"""`explain`: how each leaf of a factored tree is computed, and at what cost."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax

from jaxmix.affine import AffineMap
from jaxmix.errors import AdapterError
from jaxmix.operators import Dense, Hadamard, Identity, LowRank, Operator, Product, Sum, Zero, terms
from jaxmix.placement.names import leaf_names
from jaxmix.unmerged.attaching import is_factored
from jaxmix.unmerged.costs import added_flops, is_cheaper
from jaxmix.unmerged.leaf import Factored, NotApart
from jaxmix.unmerged.ragged import is_ragged
from jaxmix.unmerged.running import uses_without_form
from jaxmix.unmerged.weight import Weight

__all__ = ["Explanation", "Way", "explain"]


@dataclass(frozen=True)
class Way:
    """How a leaf is computed.

    Args:
        leaf: Its dotted name.
        sites: The sites that it holds.
        way: ``"factored"`` or ``"dense"``.
        why: The reason for this choice.
        operators: The operators of its map, as a string.
        base_flops: Operations of the base's product with this number of tokens.
        added_flops: Additional operations of the factored form.
        dense_flops: Operations for computing the dense weight, once per call.
    """

    leaf: str
    sites: tuple[str, ...]
    way: str
    why: str
    operators: str
    base_flops: int
    added_flops: int
    dense_flops: int


@dataclass(frozen=True)
class Explanation:
    """How the leaves of a tree are computed; prints as a table.

    Args:
        ways: One row per leaf.
        tokens: The number of tokens.
    """

    ways: tuple[Way, ...]
    tokens: int

    def __str__(self) -> str:
        head = ("leaf", "way", "operators", "base", "added", "to make dense", "why")
        rows = [
            (
                *(way.leaf, way.way, way.operators),
                *map(_short, (way.base_flops, way.added_flops, way.dense_flops)),
                way.why,
            )
            for way in self.ways
        ]
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        lines = (
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in (head, *rows)
        )
        count = f"{self.tokens} token{'' if self.tokens == 1 else 's'}"
        return "\n".join([f"operations for {count}", *lines])

    __repr__ = __str__


def explain(
    leaves: Any, tokens: int = 1, *, fn: Callable[..., Any] | None = None, args: Sequence[Any] = ()
) -> Explanation:
    """Explains how `jaxmix.factored` computes each leaf of an attached tree, and at what cost.

    Without ``fn``, it describes products over a weight's inputs, including `jax.lax.ragged_dot` for
    experts. With ``fn``, it also traces the function: if a use of a leaf has no factored form, such
    as its norm, the leaf is made dense there, and the explanation names this use.

    Args:
        leaves: The tree.
        tokens: The number of tokens in one call; for a convolution, of positions.
        fn: A function ``fn(leaves, *args)`` for `jaxmix.factored`; it is traced, not computed.
        args: Its other arguments, arrays or `jax.ShapeDtypeStruct`.

    Returns:
        One row per leaf with adapters; ``print`` it, or read its ``ways``.

    Raises:
        AdapterError: If nothing is attached, or ``tokens`` is not a positive number.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxmix import Adapter, attach
        >>> from jaxmix.families import LoRA
        >>> lora = Adapter({"proj": LoRA(jnp.ones((1, 30)), jnp.ones((20, 1)), 1.0)})
        >>> leaves = attach({"proj.weight": jnp.zeros((20, 30))}, lora)
        >>> explain(leaves).ways[0].way
        'factored'
        >>> explain(leaves, fn=lambda params: params["proj.weight"].sum()).ways[0].way
        'dense'

    Source: docs/design.md.
    """
    if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 1:
        raise AdapterError(f"explain: tokens is {tokens!r}, expected a whole number from 1 on.")
    paths, _ = jax.tree_util.tree_flatten_with_path(leaves, is_leaf=is_factored)
    names = leaf_names([path for path, _ in paths])
    held = [(name, leaf) for name, (_, leaf) in zip(names, paths, strict=True) if is_factored(leaf)]
    if not held:
        raise AdapterError(
            "explain: no leaf has adapters beside it, expected a tree that jaxmix.attach made."
        )
    ways = [_way(name, leaf, tokens) for name, leaf in held]
    if fn is not None:
        uses = uses_without_form(fn, (leaves, *args), {})
        ways = [
            _with_uses(way, [use.reason for use in uses if use.leaf == way.leaf]) for way in ways
        ]
    return Explanation(tuple(ways), tokens)


def _with_uses(way: Way, whys: Sequence[str]) -> Way:
    """A row, for a function with these uses of the leaf without a factored form."""
    if not whys or way.way == "dense":
        return way
    return replace(way, way="dense", why=f"no factored form for {', '.join(whys)}")


def _way(name: str, leaf: Factored, tokens: int) -> Way:
    """How one leaf is computed."""
    sites, size = leaf.tags.sites, math.prod(leaf.shape)
    weight = _shapes(leaf)
    if isinstance(weight, NotApart):
        return Way(name, sites, "dense", weight.why, "", 2 * size * tokens, 0, size)
    stack = weight.axes[2]
    layers = 1 if stack is None else weight.shape[stack]
    added, made, described, why = weight.count(
        lambda one: (added_flops(one, tokens), one.flops(), _described(one), _why(one))
    )
    is_thin = is_cheaper(weight, tokens)
    why = "the operators cost less than a pass over the weight" if is_thin else why
    if is_thin and weight.is_stacked and not weight.count(is_ragged):
        why += "; lax.ragged_dot takes the dense weight"
    return Way(
        name,
        sites,
        "factored" if is_thin else "dense",
        why,
        described,
        2 * size * tokens,
        layers * added,
        layers * made + size,
    )


def _shapes(leaf: Factored) -> Weight | NotApart:
    """The leaf's base and map as shapes only, or the reason why it has none."""
    return jax.eval_shape(lambda leaf: leaf.apart(), leaf)


def _why(one: AffineMap) -> str:
    """The reason why its operators cost more than the dense weight."""
    if any(isinstance(term, Dense) for term in terms(one.shift)):
        return "a term of Δ has no structure, so its product costs what the base's does"
    if any(isinstance(side, Dense) for side in (one.left, one.right)):
        return "L or R has no structure"
    return "for this many tokens the dense weight costs less"


def _described(one: AffineMap) -> str:
    """The operators of a map, as a string."""
    parts = [
        f"{name} {_named(side)}"
        for name, side in (("L", one.left), ("R", one.right))
        if not isinstance(side, Identity)
    ]
    if not isinstance(one.shift, Zero):
        parts.append(f"Δ {_named(one.shift)}")
    return ", ".join(parts) or "nothing"


def _named(x: Operator) -> str:
    """An operator's structure, in one or two words."""
    match x:
        case LowRank():
            return f"LowRank r={x.rank}"
        case Hadamard():
            return f"Hadamard r={x.left.rank}·{x.right.rank}"
        case Sum():
            return " + ".join(map(_named, x.terms))
        case Product():
            return f"{_named(x.first)}·{_named(x.second)}"
        case _:
            return type(x).__name__


def _short(count: int) -> str:
    """A count with three digits: ``1.05M``."""
    power = max(0, min(5, (len(str(count)) - 1) // 3))
    return f"{count / 1000**power:.3g}{('', 'k', 'M', 'G', 'T', 'P')[power]}"
