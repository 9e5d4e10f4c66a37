"""Words of updates put into the leaves of a params tree: the dense way to run a mix."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmix.choosing import chosen
from jaxmix.errors import LayoutError, ShapeError, listing
from jaxmix.families import parts_of
from jaxmix.layout import KERNEL, Layout, Part, Place, named
from jaxmix.params import check_no_path
from jaxmix.plan import Form, Word
from jaxmix.quantized import dequantized, is_quantized
from jaxmix.sharded import apply as apply_to_leaf
from jaxmix.sharded import sharding_of
from jaxmix.sites import Site, Tree, located, shared
from jaxmix.tied import tied_sites

__all__ = ["Fitted", "Word", "apply", "fitted"]


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
    word: Word
    weight: Form | None
    bias: Form | None
    turned: bool = False


def apply(
    params: Any,
    words: Mapping[str, Word],
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
    counts = Counter(map(id, tree.leaves))
    for one in sites:
        if one.weight and (place := one.site.weight) and one.site.changes_weight:
            at = tree.where[place.leaf]
            leaf = leaves[at]
            # A leaf that holds several sites is ours from the second one on.
            ours = leaf is not tree.leaves[at] or (donate and counts[id(leaf)] == 1)
            may_donate = ours and isinstance(leaf, jax.Array)
            leaves[at] = apply_to_leaf(_array(leaf), one.word, one.weight, donate=may_donate)
    return jax.tree_util.tree_unflatten(tree.treedef, leaves)


def fitted(
    params: Any, words: Mapping[str, Word], layout: Layout | str | None
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
    if layout is None:

        def fits(sites: Sequence[Site]) -> bool:
            return not list(_unusable(tree, sites)) and not _misfits(_forms(tree, sites))

        table, sites = chosen(tree, words, fits)
    else:
        table = named(layout)
    tied = list(tied_sites(tree.where, words, table))
    if tied and callable(untied := getattr(params, "untied", None)):
        if both := [site for site, word in words.items() if _changes_both_sides(word)]:
            raise LayoutError(
                "an adapter trained tokens, which changes both sides of a tied embedding, and "
                f"another changes one side of it:{listing([*both, *tied])}\nUntie the model, and "
                "give the head tokens of its own."
            )
        tree, sites = Tree.of(untied()), None
        tied = list(tied_sites(tree.where, words, table))
    if tied:
        raise LayoutError(f"sites whose leaf the tree ties to another:{listing(tied)}")
    return tree, _fitted(tree, located(tree, words, table) if sites is None else sites)


def _changes_both_sides(word: Word) -> bool:
    """Whether something in a word changes both sides of a tied embedding."""
    return any(part.keeps_tie for _, update in word for part in parts_of(update))


def _fitted(tree: Tree, sites: list[Site]) -> list[Fitted]:
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
    forms = _forms(tree, sites)
    if misfits := _misfits(forms):
        raise ShapeError(
            f"factors that do not fit the params:{listing(misfits)}\nWas the adapter trained on "
            "another model, or on a base of another size?"
        )
    return [one for one, _ in forms]


def _forms(tree: Tree, sites: Iterable[Site]) -> list[tuple[Fitted, str | None]]:
    """The sites with their forms, each with what does not fit it."""
    found: list[tuple[Fitted, str | None]] = []
    for site in sites:
        bias = weight = None
        word, turned, why = site.word, False, None
        if site.bias:
            bias = _form("bias", tree, site.bias)
        if site.weight:
            weight, turned, why = _weight_form(tree, site, site.weight)
            word = _turned(word) if turned else word
        elif site.bias:
            size = int(np.prod(site.bias.shape(tree.leaf(site.bias).shape), dtype=int))
            why = _misfit(word, (size, 1))
        found.append((Fitted(site, word, weight, bias, turned), why))
    return found


def _misfits(forms: Iterable[tuple[Fitted, str | None]]) -> list[str]:
    """What does not fit, in words."""
    return [f"{one.site.name}: {why}" for one, why in forms if why]


def _form(part: Part, tree: Tree, place: Place) -> Form:
    """How a leaf holds a tensor, as its place says."""
    leaf = tree.leaf(place)
    factor = place.factor(tuple(leaf.shape))
    return Form(
        part, place.axes, place.index, False, sharding_of(leaf), sizes=place.sizes, scale=factor
    )


def _unusable(tree: Tree, sites: Iterable[Site]) -> Iterator[str]:
    """The leaves that can't take an update, each with the reason."""
    for site in sites:
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
    if not jnp.issubdtype(leaf.dtype, jnp.floating) or jnp.finfo(leaf.dtype).bits < 16:
        return f"has dtype {leaf.dtype}; dequantize or cast it first"
    if jax.dtypes.canonicalize_dtype(leaf.dtype) != leaf.dtype:
        return (
            f"has dtype {leaf.dtype}, which needs jax.config.update('jax_enable_x64', True), or "
            "cast it"
        )
    return None


def _weight_form(tree: Tree, site: Site, place: Place) -> tuple[Form | None, bool, str | None]:
    """How a weight's leaf lies, and whether the word fits turned; or what does not fit it.

    PyTorch stores a linear weight as (out, in), but GPT-2's Conv1D as (in, out). An update may say
    so, but it says it for all sites of an adapter, and what PEFT saves is what held for the last of
    them; PEFT itself looks at the layer. Here the tree is looked at first, then the update.
    """
    leaf = tree.leaf(place)
    shape, form = place.shape(leaf.shape), _form("weight", tree, place)
    rows, cols = shape[0], int(np.prod(shape[1:], dtype=int))
    size, turned_size = (rows, cols), (cols, rows)
    says_so = any(update.transposed for _, update in site.word) and len(shape) == 2
    by_name = len(shape) == 2 and place.index is None and place.axes in (None, KERNEL)
    out_axis = tree.out_axes.of(place.leaf) if by_name else None
    # Each way to read it: the form, the matrix, and whether PyTorch has it as (in, out).
    ways: list[tuple[Form, tuple[int, int], bool]]
    if place.axes is None:
        lies = [out_axis == 1] if out_axis is not None else [True, False] if says_so else [False]
        ways = [(replace(form, transposed=way), turned_size if way else size, way) for way in lies]
    elif place.index is None and len(shape) == 2 and _swaps(place.axes):
        # A Flax kernel (in, out): its transpose is the matrix, and nothing has to move.
        way = out_axis != 0
        plain = replace(form, axes=None, transposed=way)
        ways = [(plain, size if way else turned_size, turned) for turned in (says_so, not says_so)]
    else:
        ways = [(form, size, says_so)]
    first: str | None = None
    for form, matrix, turned in ways:
        why = _misfit(_turned(site.word) if turned else site.word, matrix)
        if why is None:
            return form, turned, None
        first = first or why
    return None, False, first


def _turned(word: Word) -> Word:
    """The word at a weight that PyTorch has as (in, out)."""
    return tuple((strength, update.turned()) for strength, update in word)


def _swaps(axes: str) -> bool:
    """Whether a pattern merely exchanges the two axes of a matrix."""
    here, there = ([n for n in side.split() if n != "..."] for side in axes.split("->"))
    return len(here) == 2 and there == here[::-1]


def _misfit(word: Word, shape: tuple[int, int]) -> str | None:
    """The first thing that does not fit a matrix of this shape."""
    return next((why for _, update in word if (why := update.misfit(shape))), None)


def _array(leaf: Any) -> jax.Array:
    """A leaf as a jax array, of its own dtype; a quantized one dequantized."""
    leaf = dequantized(leaf)
    return leaf if isinstance(leaf, jax.Array) else jnp.asarray(leaf)
