"""`explain`: how each leaf of a factored tree is computed, and at what cost."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax

from jaxmix.affine import AffineMap
from jaxmix.errors import AdapterError
from jaxmix.operators import Dense, Hadamard, Identity, LowRank, Operator, Product, Sum, Zero, terms
from jaxmix.operators.outlines import from_shapes
from jaxmix.placement.names import leaf_names
from jaxmix.unmerged.attaching import is_factored
from jaxmix.unmerged.costs import added_flops
from jaxmix.unmerged.forms import ProductForm, chosen_here
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
        way: ``"factored"``: tokens are multiplied by the base and the operators. ``"view"``: the
            same for low ranks only, other operators are added to the weight while it is read.
            ``"partly dense"``: the same, but they make a dense weight. ``"dense"``: all operators
            make a dense weight.
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
        raise AdapterError(f"explain: tokens is {tokens!r}, expected an integer of at least 1.")
    paths, _ = jax.tree_util.tree_flatten_with_path(leaves, is_leaf=is_factored)
    names = leaf_names([path for path, _ in paths])
    attached = [
        (name, leaf) for name, (_, leaf) in zip(names, paths, strict=True) if is_factored(leaf)
    ]
    if not attached:
        raise AdapterError(
            "explain: no leaf has adapters attached, expected a tree from jaxmix.attach."
        )
    ways = [_way(name, leaf, tokens) for name, leaf in attached]
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
    added, dense_flops, described, why = weight.count(
        lambda step: (added_flops(step, tokens), step.flops(), _described(step), _why(step))
    )
    way = from_shapes(lambda weight: chosen_here(weight, tokens), weight)
    why = why if way == "dense" else _REASONS[way]
    if way == "factored" and weight.is_stacked and not weight.count(is_ragged):
        why += "; lax.ragged_dot takes the dense weight"
    return Way(
        name,
        sites,
        way,
        why,
        described,
        2 * size * tokens,
        layers * added,
        layers * dense_flops + size,
    )


_REASONS: dict[ProductForm, str] = {
    "factored": "the operators cost less than a pass over the weight",
    "view": "Kronecker products cost less while the weight is read than with the tokens",
    "partly dense": "the operators of low rank cost less than a pass over the weight, others more",
}


def _shapes(leaf: Factored) -> Weight | NotApart:
    """The leaf's base and map as shapes only, or the reason why it has none."""
    return jax.eval_shape(lambda leaf: leaf.apart(), leaf)


def _why(step: AffineMap) -> str:
    """The reason why its operators cost more than the dense weight."""
    if any(isinstance(term, Dense) for term in terms(step.shift)):
        return "a term of Δ has no structure, so its product costs what the base's does"
    if any(isinstance(side, Dense) for side in (step.left, step.right)):
        return "L or R has no structure"
    return "for this many tokens the dense weight costs less"


def _described(step: AffineMap) -> str:
    """The operators of a map, as a string."""
    parts = [
        f"{name} {_named(side)}"
        for name, side in (("L", step.left), ("R", step.right))
        if not isinstance(side, Identity)
    ]
    if not isinstance(step.shift, Zero):
        parts.append(f"Δ {_named(step.shift)}")
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
    exponent = int(f"{count:.2e}".split("e")[1])
    power = min(5, exponent // 3)
    return f"{count / 1000**power:.3g}{('', 'k', 'M', 'G', 'T', 'P')[power]}"
