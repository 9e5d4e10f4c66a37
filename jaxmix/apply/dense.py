"""Words of updates put into the leaves of a params tree: the dense way to run a mix."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmix.apply.buffers import as_array, buffer_of, is_deleted
from jaxmix.apply.sharded import apply as apply_to_leaf
from jaxmix.errors import LayoutError, ShapeError, listing
from jaxmix.families import Rebase, Replace, parts_of
from jaxmix.families.base import Chain
from jaxmix.placement.choosing import chosen
from jaxmix.placement.form import Form
from jaxmix.placement.layout import Layout, named
from jaxmix.placement.params import check_no_path
from jaxmix.placement.quantized import dequantized, is_quantized
from jaxmix.placement.reading import form_of, misfit, read_weight, turned_word
from jaxmix.placement.sites import Site, Tree, located, shared
from jaxmix.placement.tied import tied_sites, trained_as_one, without_copies

__all__ = ["Chain", "Fitted", "apply", "fitted"]


@dataclass(frozen=True)
class Fitted:
    """A site whose leaves can take its word, and how they hold its tensors.

    Args:
        site: the site, its places found.
        word: its word as it fits there: turned, where PyTorch has the weight as (in, out).
        weight: how the weight's leaf holds it; None for none.
        bias: how the bias's leaf holds it; None for none.
        turned: whether the word was turned.
    """

    site: Site
    word: Chain
    weight: Form | None
    bias: Form | None
    turned: bool = False


def apply(
    params: Any,
    words: Mapping[str, Chain],
    *,
    layout: Layout | str | None = None,
    donate: bool = False,
) -> Any:
    """The params with a word of updates at each site: ``W' = uₙ(… u₁(W))``.

    Args:
        params: any pytree of weights.
        words: ``{site: ((strength, update), …)}``, the first one first.
        layout: where sites lie; None for by name.
        donate: whether the changed leaves' buffers may be used for the result.

    Returns:
        A tree of the same structure; untouched leaves are the same objects.

    Raises:
        LayoutError: if sites find no leaf, more than one, a tied one, or one that is not of floats.
        ShapeError: if factors do not fit their weights.
    """
    if not words:
        check_no_path(params)
        return params
    tree, sites = fitted(params, words, layout)
    leaves = list(tree.leaves)
    # Biases first: their maps may read weights, whose buffers may then be given up.
    for one in sites:
        if one.bias and (place := one.site.bias):
            reads = one.site.reads_base and one.site.weight
            at = tree.where[place.leaf]
            leaves[at] = apply_to_leaf(
                _array(leaves[at]),
                one.word,
                one.bias,
                base=_array(tree.leaf(reads)) if reads else None,
                base_form=one.weight if reads else None,
            )
    # A buffer is given up only where one leaf alone has it, and no factor.
    held = [*tree.leaves, *jax.tree.leaves(words)] if donate else []
    counts = Counter(map(buffer_of, held))
    for one in sites:
        if one.weight and (place := one.site.weight) and one.site.changes_weight:
            at = tree.where[place.leaf]
            leaf = leaves[at]
            # A leaf that holds several sites is ours from the second one on.
            ours = leaf is not tree.leaves[at] or (donate and counts[buffer_of(leaf)] == 1)
            may_donate = ours and isinstance(leaf, jax.Array)
            leaves[at] = apply_to_leaf(_array(leaf), one.word, one.weight, donate=may_donate)
    return jax.tree_util.tree_unflatten(tree.treedef, leaves)


def fitted(
    params: Any, words: Mapping[str, Chain], layout: Layout | str | None
) -> tuple[Tree, list[Fitted]]:
    """The sites of words in a tree, each word fit for its leaves.

    Args:
        params: any pytree of weights.
        words: ``{site: ((strength, update), …)}``, the first one first.
        layout: where sites lie; None for by name.

    Returns:
        The tree, untied where it has to be and knows how, and a site for each word, in order.

    Raises:
        LayoutError: as `apply`.
        ShapeError: as `apply`.
    """
    tree, sites = Tree.of(params), None
    is_named = layout is None or named(layout).by_name
    as_one, copies = trained_as_one(words, tree.where) if is_named else (frozenset(), frozenset())
    words = without_copies(words, copies, tree.where)
    if layout is None:

        def fits(sites: Sequence[Site]) -> bool:
            return not list(_unusable(tree, sites)) and not _misfits(_fits(tree, sites))

        table, sites = chosen(tree, words, fits)
    else:
        table = named(layout)
    one_sided = {site: word for site, word in words.items() if site not in as_one}
    tied = list(tied_sites(tree.where, one_sided, table))
    if tied and callable(untied := getattr(params, "untied", None)):
        if both := [site for site, word in words.items() if _changes_both_sides(word)]:
            raise LayoutError(
                "an adapter trained tokens, which changes both sides of a tied embedding, and "
                f"another changes one side of it:{listing([*both, *tied])}\nUntie the model, and "
                "give the head tokens of its own."
            )
        tree, sites = Tree.of(untied()), None
        tied = list(tied_sites(tree.where, one_sided, table))
    if tied:
        raise LayoutError(f"sites whose leaf the tree ties to another:{listing(tied)}")
    return tree, _fitted(tree, located(tree, words, table) if sites is None else sites, table)


def _changes_both_sides(word: Chain) -> bool:
    """Whether something in a word changes both sides of a tied embedding."""
    return any(part.keeps_tie for _, update in word for part in parts_of(update))


def _fitted(tree: Tree, sites: list[Site], table: Layout) -> list[Fitted]:
    """The forms of each site's leaves; leaves and factors that do not fit are listed."""
    if unusable := list(_unusable(tree, sites)):
        raise LayoutError(
            f"leaves that can't take an adapter, expected arrays of floats:{listing(unusable)}"
        )
    if both := list(shared(tree, sites)):
        raise LayoutError(
            f"leaves that are more than one site's:{listing(both)}\nMend the layout's rules: each "
            "site needs a leaf, or an index into one, of its own."
        )
    fits = _fits(tree, sites, table)
    if misfits := _misfits(fits):
        raise ShapeError(
            f"factors that do not fit the params:{listing(misfits)}\nWas the adapter trained on "
            f"another model, or on a base of another size?{_resize_hint(fits)}"
        )
    if unclear := [fit.site.site for fit in fits if fit.is_unclear]:
        lines = [f"{s.name}: {s.weight.leaf} {s.weight.shape(tree.leaf(s.weight).shape)}"
                 for s in unclear if s.weight]  # fmt: skip
        raise LayoutError(
            f"weights whose orientation is unknown:{listing(lines)}\nPyTorch stores them as (out, "
            "in) if they are torch.nn.Linear, as (in, out) if they are transformers' Conv1D, and "
            "neither config.json, shapes nor biases tell which. The adapter's fan_in_fan_out = "
            "true holds for the last layer that PEFT wrapped, and need not for others. Say which "
            "modules are Conv1D by a regular expression, '' for none: "
            r"layout=jaxmix.Layout('mine', conv1d=r'.*\.c_proj'), or --conv1d."
        )
    return [fit.site for fit in fits]


@dataclass(frozen=True)
class _Fit:
    """A site with its forms, and what is wrong with it.

    Args:
        site: The site.
        misfit: What does not fit, in words; None if all does.
        is_unclear: Whether nothing tells which way its weight lies.
    """

    site: Fitted
    misfit: str | None = None
    is_unclear: bool = False


def _resize_hint(fits: Iterable[_Fit]) -> str:
    """What to do where a file brings a leaf with more or fewer rows than the params have."""
    updates = (
        part
        for fit in fits
        if fit.misfit and fit.site.site.weight
        for _, update in fit.site.site.word
        for part in parts_of(update)
    )
    if not any(isinstance(part, Replace | Rebase) and part.has_weight for part in updates):
        return ""
    return (
        " If it was trained with more tokens, resize these leaves of the params first, or merge "
        "into the checkpoint with jaxmix.merge_checkpoint(..., resize=True)."
    )


def _fits(tree: Tree, sites: Iterable[Site], table: Layout | None = None) -> list[_Fit]:
    """The sites with their forms, each with what is wrong with it."""
    found: list[_Fit] = []
    for site in sites:
        bias = form_of("bias", tree, site.bias) if site.bias else None
        if site.weight:
            read = read_weight(tree, site, site.weight, table)
            word = turned_word(site.word) if read.turned else site.word
            one = Fitted(site, word, read.form, bias, read.turned)
            why = read.misfit or _bias_misfit(tree, one)
            found.append(_Fit(one, why, read.is_unclear))
        else:
            size = site.bias and np.prod(site.bias.shape(tree.leaf(site.bias).shape), dtype=int)
            why = misfit(site.word, (int(size), 1)) if size is not None else None
            found.append(_Fit(Fitted(site, site.word, None, bias), why))
    return found


def _bias_misfit(tree: Tree, one: Fitted) -> str | None:
    """Why a site's bias can't belong to its weight, or None."""
    weight, bias = one.site.weight, one.site.bias
    if not (weight and bias and one.weight):
        return None
    rows, columns = one.weight.shape(tree.leaf(weight).shape)
    size = math.prod(bias.shape(tree.leaf(bias).shape))
    if size == rows or (one.turned and size == columns):
        return None
    return f"its bias {bias.leaf} has {size} numbers, expected {rows}, as the weight has outputs"


def _misfits(fits: Iterable[_Fit]) -> list[str]:
    """What does not fit, in words."""
    return [f"{fit.site.site.name}: {fit.misfit}" for fit in fits if fit.misfit]


def _unusable(tree: Tree, sites: Iterable[Site]) -> Iterator[str]:
    """The leaves that can't take an update, each with the reason."""
    for site in sites:
        if any(map(is_deleted, jax.tree.leaves(site.word))):
            yield f"{site.name}: the buffer of a factor was given up, by donation or delete()"
        for place in (site.weight, site.bias):
            if place is None:
                continue
            if why := _unfit(leaf := tree.leaf(place)):
                yield f"{site.name}: {place.leaf} {why}"
                continue
            try:
                if not place.shape(leaf.shape):
                    yield f"{site.name}: {place.leaf} is a scalar, expected a tensor with axes"
            except LayoutError as error:
                yield f"{site.name}: {error}"


def _unfit(leaf: Any) -> str | None:
    """Why a leaf can't take an update, or None."""
    if not isinstance(leaf, jax.Array | np.ndarray) and not is_quantized(leaf):
        return f"is a {type(leaf).__name__}"
    if isinstance(leaf, np.ma.MaskedArray):
        return "is a masked array; fill it: np.ma.filled(array, 0)"
    if is_deleted(leaf):
        return "was given up (donate=True, or delete()); use the params that compose returned"
    if not jnp.issubdtype(leaf.dtype, jnp.floating) or jnp.finfo(leaf.dtype).bits < 16:
        return f"has dtype {leaf.dtype}; dequantize or cast it first"
    if jax.dtypes.canonicalize_dtype(leaf.dtype) != leaf.dtype:
        return (
            f"has dtype {leaf.dtype}, which needs jax.config.update('jax_enable_x64', True), or "
            "cast it"
        )
    return None


def _array(leaf: Any) -> jax.Array:
    """A leaf as a jax array, of its own dtype; a quantized one dequantized."""
    return as_array(dequantized(leaf))
