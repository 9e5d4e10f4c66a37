"""Words of updates put into the leaves of a params tree: the dense way to run a mix."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmix.errors import LayoutError, ShapeError, listing
from jaxmix.layout import LAYOUTS, NAMES, Layout, Part, Place, leaf_name
from jaxmix.plan import Form, Word
from jaxmix.plan import apply as apply_to_leaf
from jaxmix.tied import tied_problem

__all__ = ["Word", "apply"]


@dataclass(frozen=True)
class _Tree:
    """A params tree taken apart."""

    leaves: list[Any]
    where: dict[str, int]
    treedef: Any
    twice: frozenset[str]


@dataclass(frozen=True)
class _Site:
    """A word, and where the leaves are that it changes."""

    name: str
    word: Word
    weight: Place | None
    bias: Place | None

    @property
    def changes_weight(self) -> bool:
        return any(update.has_weight for _, update in self.word)

    @property
    def changes_bias(self) -> bool:
        return any(update.has_bias for _, update in self.word)


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
        return params
    table = _table(layout)
    tree = _take_apart(params)
    tied = [] if table not in LAYOUTS.values() else _tied(tree, words)
    if tied and callable(untied := getattr(params, "untied", None)):
        params = untied()
        tree, tied = _take_apart(params), []
    if tied:
        raise LayoutError(f"sites whose leaf the tree ties to another:{listing(tied)}")
    sites = _located(tree, words, table)
    forms = _fitted(tree, sites)
    counts = Counter(map(id, tree.leaves)) if donate else Counter()
    leaves = list(tree.leaves)
    for site, (weight, bias) in zip(sites, forms, strict=True):
        # The bias first: its map may read the weight, whose buffer may be given up.
        if bias is not None and site.bias is not None:
            at = tree.where[site.bias.leaf]
            base = tree.leaves[tree.where[site.weight.leaf]] if site.weight and weight else None
            leaves[at] = apply_to_leaf(
                _array(leaves[at]), site.word, bias, base=base, base_form=weight
            )
        if weight is not None and site.weight is not None and site.changes_weight:
            at = tree.where[site.weight.leaf]
            ours = leaves[at] is not tree.leaves[at] or (donate and counts[id(leaves[at])] == 1)
            leaf = leaves[at]
            may_donate = ours and isinstance(leaf, jax.Array)
            leaves[at] = apply_to_leaf(_array(leaf), site.word, weight, donate=may_donate)
    return jax.tree_util.tree_unflatten(tree.treedef, leaves)


def _table(layout: Layout | str | None) -> Layout:
    """The layout meant."""
    if isinstance(layout, Layout):
        return layout
    if layout is None:
        return NAMES
    if layout in LAYOUTS:
        return LAYOUTS[layout]
    raise LayoutError(
        f"there is no layout {layout!r}, expected None, one of {', '.join(map(repr, LAYOUTS))}, or a "
        "jaxmix.Layout with rules of your own."
    )


def _take_apart(params: Any) -> _Tree:
    paths, treedef = jax.tree_util.tree_flatten_with_path(params)
    names = [leaf_name(path) for path, _ in paths]
    counts = Counter(names)
    twice = frozenset(name for name, count in counts.items() if count > 1)
    where = {name: i for i, name in enumerate(names)}
    return _Tree([leaf for _, leaf in paths], where, treedef, twice)


def _tied(tree: _Tree, words: Mapping[str, Word]) -> list[str]:
    """The sites whose weight is tied, each with what to do."""
    return [
        f"{site}: {problem}"
        for site, word in words.items()
        if any(update.has_weight for _, update in word)
        and (problem := tied_problem(site, tree.where))
    ]


def _located(tree: _Tree, words: Mapping[str, Word], table: Layout) -> list[_Site]:
    """The sites with their leaves; all that find none, or more than one, are listed."""
    lost: list[str] = []
    sites: list[_Site] = []
    owners: dict[tuple[str, str | None], str] = {}
    for name, word in words.items():
        reads = any(update.reads_base for _, update in word)
        site = _Site(name, word, None, None)
        found: dict[Part, Place | None] = {"weight": None, "bias": None}
        for part, needed in (
            ("weight", site.changes_weight or reads),
            ("bias", site.changes_bias),
        ):
            places = table.places(name, part) if needed else []
            hits = [place for place in places if place.leaf in tree.where]
            if needed and (len(hits) != 1 or hits[0].leaf in tree.twice):
                lost.append(f"{name}: {_lost(name, part, places, hits, tree)}")
            elif hits:
                owner = owners.setdefault((hits[0].leaf, hits[0].index), name)
                if owner != name:
                    lost.append(f"{name}: its {part} {hits[0].leaf} is also that of {owner}")
                found[part] = hits[0]
        sites.append(_Site(name, word, found["weight"], found["bias"]))
    if lost:
        raise LayoutError(
            f"{len(lost)} site{'' if len(lost) == 1 else 's'} of the adapters can't be placed in the "
            f"params by the layout {table.name!r}:{listing(lost)}\nWas the adapter trained on another "
            "model? If the leaves have other names, give layout=jaxmix.Layout(…) with rules."
        )
    return sites


def _lost(name: str, part: Part, places: list[Place], hits: list[Place], tree: _Tree) -> str:
    """Why a site was not placed, and which leaves are the nearest."""
    if hits:
        leaves = ", ".join(sorted({place.leaf for place in hits}))
        return f"more than one leaf is its {part}: {leaves}"
    if not places:
        return f"no rule of the layout is for its {part}"
    inside = [n for n in tree.where if any(n.startswith(f"{place.leaf}.") for place in places)]
    if inside:
        return (
            f"its {part} is no single array but has parts ({', '.join(inside[:3])}). Quantized "
            "weights must be dequantized first"
        )
    if part == "bias" and any(n.startswith((f"{name}.", f"params.{name}.")) for n in tree.where):
        return "the adapter changes its bias, but the tree has none there; add one of zeros"
    near = get_close_matches(places[0].leaf, tree.where, n=3, cutoff=0.5)
    near = near or list(tree.where)[:3]
    return f"no leaf for its {part}; the nearest are {', '.join(near) or 'none: the tree is empty'}"


def _fitted(tree: _Tree, sites: list[_Site]) -> list[tuple[Form | None, Form | None]]:
    """The forms of each site's leaves; leaves and factors that do not fit are listed."""
    forms: list[tuple[Form | None, Form | None]] = []
    unusable: list[str] = []
    misfits: list[str] = []
    for site in sites:
        weight = bias = None
        for place in (site.weight, site.bias):
            if place and (why := _unusable(tree.leaves[tree.where[place.leaf]])):
                unusable.append(f"{site.name}: {place.leaf} {why}")
        if unusable:
            continue
        if site.bias:
            leaf = tree.leaves[tree.where[site.bias.leaf]]
            bias = Form("bias", site.bias.axes, site.bias.index, False, _sharding(leaf))
        if site.weight:
            leaf = tree.leaves[tree.where[site.weight.leaf]]
            weight, why = _weight_form(site, site.weight, leaf)
            if why:
                misfits.append(f"{site.name}: {why}")
        elif site.bias:
            size = np.prod(site.bias.shape(tree.leaves[tree.where[site.bias.leaf]].shape), dtype=int)
            whys = (update.misfit((int(size), 1)) for _, update in site.word)
            misfits.extend(f"{site.name}: {why}" for why in whys if why)
        forms.append((weight, bias))
    if unusable:
        raise LayoutError(
            f"leaves that can't take an adapter, expected arrays of floats:{listing(unusable)}"
        )
    if misfits:
        raise ShapeError(
            f"factors that do not fit the params:{listing(misfits)}\nWas the adapter trained on "
            "another model, or on a base of another size?"
        )
    return forms


def _unusable(leaf: Any) -> str | None:
    """Why a leaf can't take an update, or None."""
    dtype = getattr(leaf, "dtype", None)
    if dtype is None or not hasattr(leaf, "shape"):
        return f"is a {type(leaf).__name__}"
    if not jnp.issubdtype(dtype, jnp.floating):
        return f"has dtype {dtype}; dequantize or cast it first"
    if isinstance(leaf, np.ndarray) and jax.dtypes.canonicalize_dtype(dtype) != dtype:
        return f"has dtype {dtype}, which needs jax.config.update('jax_enable_x64', True), or cast it"
    return None


def _weight_form(site: _Site, place: Place, leaf: Any) -> tuple[Form | None, str | None]:
    """How a weight's leaf lies, or what does not fit it.

    An update may say that PyTorch stores its weight as (in, out). It says so for all linear sites of
    an adapter, and PEFT itself then looks at the layer; here the factors' shapes tell.
    """
    shape = place.shape(leaf.shape)
    sharding = _sharding(leaf)
    if not shape:
        return None, f"{place.leaf} is a scalar, expected a weight with axes"
    size = (shape[0], int(np.prod(shape[1:], dtype=int)))
    flagged = any(update.transposed for _, update in site.word) and len(shape) == 2
    stored = place.axes is None
    first: str | None = None
    for transposed in (True, False) if flagged and stored else (False,):
        matrix = size[::-1] if transposed else size
        whys = (update.misfit(matrix) for _, update in site.word)
        why = next((why for why in whys if why), None)
        if why is None:
            if not stored and len(shape) == 2 and place.index is None and _swaps(place.axes):
                # A Flax kernel (in, out): its transpose is the matrix, and nothing has to move.
                return Form("weight", None, None, True, sharding), None
            return Form("weight", place.axes, place.index, transposed, sharding), None
        first = first or why
    return None, first


def _swaps(axes: str | None) -> bool:
    """Whether a pattern merely exchanges the two axes of a matrix."""
    here, there = (side.split() for side in (axes or "->").split("->"))
    names = [name for name in here if name != "..."]
    return len(names) == 2 and [name for name in there if name != "..."] == names[::-1]


def _sharding(leaf: Any) -> jax.sharding.NamedSharding | None:
    """The sharding to keep, where a leaf lies on several devices."""
    if isinstance(leaf, jax.core.Tracer) or not isinstance(leaf, jax.Array):
        return None
    sharding = leaf.sharding
    several = isinstance(sharding, jax.sharding.NamedSharding) and len(leaf.devices()) > 1
    return sharding if several else None


def _array(leaf: Any) -> jax.Array:
    """A leaf as a jax array, of its own dtype."""
    return leaf if isinstance(leaf, jax.Array) else jnp.asarray(leaf)
