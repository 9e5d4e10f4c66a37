"""Sites found in a params tree: which leaves a word of updates changes, and how these lie there."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from itertools import combinations
from typing import Any

import jax

from jaxmix.errors import LayoutError, listing
from jaxmix.families.base import Chain
from jaxmix.placement.layout import Layout, Part, Place
from jaxmix.placement.names import leaf_names
from jaxmix.placement.orientation import OutAxes
from jaxmix.placement.params import check_tree
from jaxmix.placement.quantized import is_quantized
from jaxmix.placement.spelling import Spellings, respelled

__all__ = ["Site", "Tree", "located", "placed", "shared"]

_SHOWN = 20


@dataclass(frozen=True)
class Tree:
    """A params tree taken apart.

    Args:
        leaves: its leaves, in JAX's order.
        treedef: its structure.
        where: the place of each leaf among them, by its dotted name.
        twice: the names that more than one leaf has.
        root: the tree itself, whose modules' classes tell what their leaves are.
    """

    leaves: list[Any]
    treedef: Any
    where: dict[str, int]
    twice: frozenset[str]
    root: Any = None

    @classmethod
    def of(cls, params: Any) -> "Tree":
        """Takes a tree apart.

        Raises:
            LayoutError: if it is no tree of weights, but a path to one, or nothing.
        """
        check_tree(params)
        paths, treedef = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_quantized)
        names = leaf_names([path for path, _ in paths])
        twice = frozenset(name for name, count in Counter(names).items() if count > 1)
        where = {name: i for i, name in enumerate(names)}
        return cls([leaf for _, leaf in paths], treedef, where, twice, params)

    def leaf(self, place: Place) -> Any:
        """The leaf at a place."""
        return self.leaves[self.where[place.leaf]]

    @cached_property
    def spellings(self) -> Spellings:
        """The leaves' names by what is left of them without wrappers."""
        return Spellings(self.where)

    @cached_property
    def out_axes(self) -> "OutAxes":
        """Which axis of a linear layer's weight is its output."""
        shapes = {name: getattr(self.leaves[i], "shape", ()) for name, i in self.where.items()}
        return OutAxes(shapes)


@dataclass(frozen=True)
class Site:
    """A word of updates, and where the leaves are that it changes or reads.

    Args:
        name: the site's PyTorch name.
        word: strengths and updates, the first one first.
        weight: where its weight lies; None if the word does not need it.
        bias: where its bias lies; None if the word does not change it, or only turns it and there
            is none.
    """

    name: str
    word: Chain
    weight: Place | None = None
    bias: Place | None = None

    @property
    def changes_weight(self) -> bool:
        """Whether an update has a map of the weight."""
        return any(update.has_weight for _, update in self.word)

    @property
    def changes_bias(self) -> bool:
        """Whether an update has a map of the bias."""
        return any(update.has_bias for _, update in self.word)

    @property
    def turns_bias(self) -> bool:
        """Whether an update has a map of a bias that need not be there."""
        return any(update.turns_bias for _, update in self.word)

    @property
    def reads_base(self) -> bool:
        """Whether an update asks for the base's leaves."""
        return any(update.reads_base for _, update in self.word)


def located(tree: Tree, words: Mapping[str, Chain], table: Layout) -> list[Site]:
    """The sites with their leaves, by a layout.

    Args:
        tree: the params.
        words: ``{site: word}``.
        table: the layout.

    Returns:
        A site for each word, in order; but for copies that find no leaf.

    Raises:
        LayoutError: if sites find no leaf, or more than one; it lists them all.
    """
    sites, lost = placed(tree, words, table)
    if lost:
        # Only those that are shown are looked into: the search for near names is slow.
        shown, rest = lost[:_SHOWN], lost[_SHOWN:]
        lines = [f"{name}: {_lost(name, part, places, tree)}" for name, part, places in shown]
        lines += [name for name, _, _ in rest]
        count = len({name for name, _, _ in lost})
        raise LayoutError(
            f"{count} site{'' if count == 1 else 's'} of the adapters can't be placed in the "
            f"params by the layout {table.name!r}:{listing(lines, _SHOWN)}\nWas the adapter "
            "trained on another model? If the leaves have other names, give "
            "layout=jaxmix.Layout(…) with rules."
        )
    return sites


def placed(
    tree: Tree, words: Mapping[str, Chain], table: Layout, *, is_strict: bool = False
) -> tuple[list[Site], list[tuple[str, Part, list[Place]]]]:
    """The sites that a layout places, and those that it does not.

    Args:
        tree: the params.
        words: ``{site: word}``.
        table: the layout.
        is_strict: whether to stop at the first that finds no leaf.

    Returns:
        A site for each word, in order, but for copies that find no leaf; and for each leaf that is
        not found, or more than once, its site, its part, and where it was looked for.
    """
    lost: list[tuple[str, Part, list[Place]]] = []
    sites: list[Site] = []
    for name, word in words.items():
        bare = Site(name, word)
        tried = respelled(table, name, tree.where, tree.spellings)
        if all(update.is_copy for _, update in word):
            if not any(place.leaf in tree.where for place in tried["weight"]):
                continue
        found: dict[Part, Place] = {}
        needs: dict[Part, bool] = {
            "weight": bare.changes_weight or bare.reads_base,
            "bias": bare.changes_bias,
        }
        for part, needed in needs.items():
            wanted = needed or (part == "bias" and bare.turns_bias)
            places = tried[part] if wanted else []
            hits = [place for place in places if place.leaf in tree.where]
            if len(hits) == 1 and hits[0].leaf not in tree.twice:
                found[part] = hits[0]
            elif needed or hits:
                lost.append((name, part, places))
        if lost and is_strict:
            break
        sites.append(Site(name, word, found.get("weight"), found.get("bias")))
    return sites, lost


def _lost(name: str, part: Part, places: list[Place], tree: Tree) -> str:
    """Why a site was not placed, and which leaves are the nearest."""
    if not places:
        return f"no rule of the layout is for its {part}"
    hits = sorted({place.leaf for place in places if place.leaf in tree.where})
    if len(hits) == 1 and hits[0] in tree.twice:
        return f"the tree has more than one leaf of the name {hits[0]}"
    if hits:
        return f"more than one leaf is its {part}: {', '.join(hits)}"
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


def shared(tree: Tree, sites: Iterable[Site]) -> Iterator[str]:
    """The leaves of which two sites, or a weight and a bias, have an element in common, in words.

    Args:
        tree: the params.
        sites: the sites, their places fit for their leaves.

    Yields:
        A line for each pair.
    """
    tenants: dict[str, list[tuple[str, Place]]] = defaultdict(list)
    for site in sites:
        for part, place in (("weight", site.weight), ("bias", site.bias)):
            if place is not None:
                tenants[place.leaf].append((f"{site.name}'s {part}", place))
    for leaf, those in tenants.items():
        if len(those) == 1:
            continue
        shape = tree.leaves[tree.where[leaf]].shape
        picked = [(who, place.ranges(shape)) for who, place in those]
        # Layers and experts are many, and one number each: only those of one number are compared.
        axes = [k for k in range(len(shape)) if all(len(ranges[k]) == 1 for _, ranges in picked)]
        groups: dict[tuple[int, ...], list[tuple[str, tuple[range, ...]]]] = defaultdict(list)
        for who, ranges in picked:
            groups[tuple(ranges[k][0] for k in axes)].append((who, ranges))
        for group in groups.values():
            for (who, ours), (other, theirs) in combinations(group, 2):
                if all(not set(a).isdisjoint(b) for a, b in zip(ours, theirs, strict=True)):
                    yield f"{leaf}: {who} and {other}"
