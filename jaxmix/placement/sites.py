"""Sites of adapters, and the leaves of a params tree that a layout gives them."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property

from jaxmix.errors import LayoutError, listing, remedy
from jaxmix.families.base import Chain
from jaxmix.placement.form import Form
from jaxmix.placement.layout import Layout, Part, Place
from jaxmix.placement.spelling import respelled
from jaxmix.placement.tree import Tree

__all__ = ["Site", "UnplacedError", "located", "placed"]

_SHOWN = 20


class UnplacedError(LayoutError):
    """Sites that match no leaf, or more than one.

    Its message lists the leaves with similar names. That search takes seconds in a large tree, so
    it waits until someone reads the message: often the sites are then found by other names.

    Attributes:
        sites: Their names.
        lacks_only_biases: Whether each of them has a leaf for its weight, so that only biases are
            missing. Other names would not help then, and might be those of other modules.
    """

    def __init__(
        self,
        explain: Callable[[], str],
        sites: Iterable[str] = (),
        *,
        lacks_only_biases: bool = False,
    ):
        super().__init__()
        self._explain = explain
        self.sites = tuple(sites)
        self.lacks_only_biases = lacks_only_biases

    @cached_property
    def _message(self) -> str:
        return self._explain()

    def __str__(self) -> str:
        return self._message

    def __reduce__(self) -> tuple[type[LayoutError], tuple[str]]:
        return LayoutError, (self._message,)


@dataclass(frozen=True)
class Site:
    """One module that adapters change, and where its tensors are in a params tree.

    A site's weight is one place. Callers use the places' ``leaf`` and the forms, and leave their
    contents to this package.

    Args:
        name: The module's PyTorch name.
        chain: Strengths and updates, in order of application. Once the site is resolved, they are
            transposed if PyTorch stores its weight as (in, out).
        weight: Where its weight is; None if the updates do not need it.
        bias: Where its bias is; None if the updates do not change it, or only transform a bias that
            may be absent, and it is.
        weight_form: How the leaf holds the weight; None until the site is resolved.
        bias_form: How the leaf holds the bias; None until the site is resolved.
        transposed: Whether the updates were transposed.
    """

    name: str
    chain: Chain
    weight: Place | None = None
    bias: Place | None = None
    weight_form: Form | None = None
    bias_form: Form | None = None
    transposed: bool = False

    @property
    def changes_weight(self) -> bool:
        """Whether an update maps the weight."""
        return any(update.has_weight for _, update in self.chain)

    @property
    def changes_bias(self) -> bool:
        """Whether an update maps the bias."""
        return any(update.has_bias for _, update in self.chain)

    @property
    def maps_bias(self) -> bool:
        """Whether an update maps a bias that may be absent."""
        return any(update.maps_bias for _, update in self.chain)

    @property
    def reads_base(self) -> bool:
        """Whether an update needs the base's leaves."""
        return any(update.reads_base for _, update in self.chain)


def located(tree: Tree, chains: Mapping[str, Chain], table: Layout) -> list[Site]:
    """Finds the leaves of sites by a layout.

    Args:
        tree: The params.
        chains: ``{site: chain}``.
        table: The layout.

    Returns:
        A site for each chain, in order, except copies without a leaf.

    Raises:
        LayoutError: If sites match no leaf, or more than one; it lists all of them.
    """
    sites, unplaced = placed(tree, chains, table)
    if unplaced:
        advice = remedy(
            " If the leaves have other names, pass layout=jaxmix.Layout(…) with rules.", ""
        )

        def explain() -> str:
            # Only the listed sites are explained, since the search for similar names is slow.
            shown, others = unplaced[:_SHOWN], unplaced[_SHOWN:]
            lines = [f"{name}: {_reason(name, part, places, tree)}" for name, part, places in shown]
            lines += [name for name, _, _ in others]
            count = len({name for name, _, _ in unplaced})
            return (
                f"{count} site{'' if count == 1 else 's'} of the adapters can't be placed in the "
                f"params by the layout {table.name!r}:{listing(lines, _SHOWN)}\nWas the adapter "
                f"trained on another model?{advice}"
            )

        raise UnplacedError(
            explain,
            dict.fromkeys(name for name, _, _ in unplaced),
            lacks_only_biases=all(
                part == "bias" and _has_weight(name, tree, table) for name, part, _ in unplaced
            ),
        )
    return sites


def placed(
    tree: Tree, chains: Mapping[str, Chain], table: Layout, *, is_strict: bool = False
) -> tuple[list[Site], list[tuple[str, Part, list[Place]]]]:
    """Finds the leaves of sites by a layout, and the sites for which it finds none.

    Args:
        tree: The params.
        chains: ``{site: chain}``.
        table: The layout.
        is_strict: Whether to stop at the first site without a leaf.

    Returns:
        A site for each chain, in order, except copies without a leaf; and for each tensor that
        is not found, or found twice, its site, its part, and the places that were tried.
    """
    unplaced: list[tuple[str, Part, list[Place]]] = []
    sites: list[Site] = []
    for name, chain in chains.items():
        bare = Site(name, chain)
        tried = respelled(table, name, tree.positions, tree.spellings)
        if all(update.is_copy for _, update in chain):
            if not any(place.leaf in tree.positions for place in tried["weight"]):
                continue
        found: dict[Part, Place] = {}
        needs: dict[Part, bool] = {
            "weight": bare.changes_weight or bare.reads_base,
            "bias": bare.changes_bias,
        }
        for part, needed in needs.items():
            wanted = needed or (part == "bias" and bare.maps_bias)
            places = tried[part] if wanted else []
            hits = [place for place in places if place.leaf in tree.positions]
            if len(hits) == 1 and hits[0].leaf not in tree.repeated:
                found[part] = hits[0]
            elif needed or hits:
                unplaced.append((name, part, places))
        if unplaced and is_strict:
            break
        sites.append(Site(name, chain, found.get("weight"), found.get("bias")))
    return sites, unplaced


def _has_weight(name: str, tree: Tree, table: Layout) -> bool:
    """Whether the tree has a leaf for a site's weight."""
    places = respelled(table, name, tree.positions, tree.spellings)["weight"]
    return any(place.leaf in tree.positions for place in places)


def _reason(name: str, part: Part, places: list[Place], tree: Tree) -> str:
    """Explains why a site's tensor was not found, with the closest leaves."""
    if not places:
        return f"the layout has no rule for its {part}"
    hits = sorted({place.leaf for place in places if place.leaf in tree.positions})
    if len(hits) == 1 and hits[0] in tree.repeated:
        return f"the tree has several leaves with the name {hits[0]}"
    if hits:
        return f"several leaves match its {part}: {', '.join(hits)}"
    # Of a place for the module itself, what is below are the module's other leaves.
    leaves = [place.leaf for place in places]
    above = [f"{leaf}." for leaf in leaves if not any(x.startswith(f"{leaf}.") for x in leaves)]
    inside = [n for n in tree.positions if n.startswith(tuple(above))]
    if inside:
        return (
            f"its {part} is not a single array but has parts ({', '.join(inside[:3])}). Quantized "
            "weights must be dequantized first"
        )
    if part == "bias" and any(
        n.startswith((f"{name}.", f"params.{name}.")) for n in tree.positions
    ):
        return "the adapter changes its bias, but the tree has no such leaf; add one of zeros"
    near = get_close_matches(places[0].leaf, tree.positions, n=3, cutoff=0.5)
    near = near or list(tree.positions)[:3]
    return f"no leaf for its {part}; the nearest are {', '.join(near) or 'none: the tree is empty'}"
