"""Resolves the sites of adapters to the leaves of a params tree, and updates to their shapes."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jaxmix.errors import LayoutError, ShapeError, listing, remedy
from jaxmix.families import Rebase, Replace, parts_of
from jaxmix.families.base import Chain
from jaxmix.placement.choosing import chosen
from jaxmix.placement.layout import Layout, named
from jaxmix.placement.leaves import overlaps, unusable
from jaxmix.placement.reading import form_of, misfit, read_weight, transposed_chain
from jaxmix.placement.sites import Site, located
from jaxmix.placement.tied import tied_sites, trained_as_one, without_copies
from jaxmix.placement.tree import Tree

__all__ = ["Resolved", "resolve"]


@dataclass(frozen=True)
class Resolved:
    """A params tree and the sites that chains of updates change in it.

    Args:
        tree: The flattened tree; of a tied model, its untied form if the model has one.
        sites: A site for each chain, in order, with its places and forms.
    """

    tree: Tree
    sites: tuple[Site, ...]


def resolve(params: Any, chains: Mapping[str, Chain], layout: Layout | str | None) -> Resolved:
    """Finds the leaves of each site in a tree, and fits the updates to them.

    Args:
        params: Any pytree of weights.
        chains: ``{site: ((strength, update), …)}``, in order of application.
        layout: Where sites are; None to infer it from the leaves.

    Returns:
        The tree and its sites.

    Raises:
        LayoutError: If sites match no leaf, several, a tied one, or one that is not of floats.
        ShapeError: If factors do not fit their weights.
    """
    tree = Tree.of(params)
    is_named = layout is None or named(layout).by_name
    as_one, copies = (
        trained_as_one(chains, tree.positions, tree.ties)
        if is_named
        else (frozenset(), frozenset())
    )
    chains = without_copies(chains, copies, tree.positions)
    table, sites = _layout_of(tree, chains, layout)
    one_sided = {site: chain for site, chain in chains.items() if site not in as_one}
    tied = list(tied_sites(tree.positions, tree.ties, one_sided, table))
    if tied and callable(untied := getattr(params, "untied", None)):
        if both := [site for site, chain in chains.items() if _changes_both_sides(chain)]:
            raise LayoutError(
                "an adapter trained tokens, which changes both sides of a tied embedding, and "
                f"another changes one side of it:{listing([*both, *tied])}\nUntie the model, and "
                "give the head tokens of its own."
            )
        tree, sites = Tree.of(untied()), None
        tied = list(tied_sites(tree.positions, tree.ties, one_sided, table))
    if tied:
        raise LayoutError(f"the tree ties the tensors of these sites to others:{listing(tied)}")
    sites = located(tree, chains, table) if sites is None else sites
    return Resolved(tree, tuple(_fitted(tree, sites, table)))


def _layout_of(
    tree: Tree, chains: Mapping[str, Chain], layout: Layout | str | None
) -> tuple[Layout, list[Site] | None]:
    """The layout, and the sites with their places if choosing the layout needed them."""
    if layout is not None:
        return named(layout), None

    def fits(sites: Sequence[Site]) -> bool:
        return not list(unusable(tree, sites)) and not _misfits(_fits(tree, sites))

    return chosen(tree, chains, fits)


def _changes_both_sides(chain: Chain) -> bool:
    """Whether something in a chain changes both sides of a tied embedding."""
    return any(part.keeps_tie for _, update in chain for part in parts_of(update))


def _fitted(tree: Tree, sites: list[Site], table: Layout) -> list[Site]:
    """The sites with the forms of their leaves; everything that does not fit is listed."""
    if lines := list(unusable(tree, sites)):
        raise LayoutError(
            f"leaves that can't take an adapter, expected arrays of floats:{listing(lines)}"
        )
    if both := list(overlaps(tree, sites)):
        raise LayoutError(
            f"leaves claimed by several sites:{listing(both)}\nFix the layout's rules: each "
            "site needs a leaf, or an index into one, of its own."
        )
    fits = _fits(tree, sites, table)
    if misfits := _misfits(fits):
        raise ShapeError(
            f"factors that do not fit the params:{listing(misfits)}\nWas the adapter trained on "
            f"another model, or on a base of another size?{_resize_hint(fits)}"
        )
    if unclear := [fit.site for fit in fits if fit.is_unclear]:
        lines = [
            f"{site.name}: {site.weight.leaf} {site.weight.shape(tree.leaf(site.weight).shape)}"
            for site in unclear
            if site.weight
        ]
        conv1d = remedy(
            r"layout=jaxmix.Layout('mine', conv1d=r'.*\.c_proj')", r"--conv1d '.*\.c_proj'"
        )
        raise LayoutError(
            f"weights whose orientation is unknown:{listing(lines)}\nPyTorch stores them as (out, "
            "in) if they are torch.nn.Linear, as (in, out) if they are transformers' Conv1D; "
            "config.json, the shapes and the biases do not show which. The adapter's "
            "fan_in_fan_out = true is that of the last layer that PEFT wrapped, and may be wrong "
            "for others. State which modules are Conv1D by a regular expression, '' for none: "
            f"{conv1d}."
        )
    return [fit.site for fit in fits]


@dataclass(frozen=True)
class _Fit:
    """A site with its forms, and what is wrong with it.

    Args:
        site: The site.
        misfit: What does not fit, as a message; None if everything does.
        is_unclear: Whether its weight's orientation can't be determined.
    """

    site: Site
    misfit: str | None = None
    is_unclear: bool = False


def _resize_hint(fits: Iterable[_Fit]) -> str:
    """Advice for an adapter that saves a leaf with more or fewer rows than that of the params."""
    updates = (
        part
        for fit in fits
        if fit.misfit and fit.site.weight
        for _, update in fit.site.chain
        for part in parts_of(update)
    )
    if not any(isinstance(part, Replace | Rebase) and part.has_weight for part in updates):
        return ""
    merging = remedy("jaxmix.merge_checkpoint(..., resize=True)", "`jaxmix merge … --resize`")
    return (
        " If it was trained with more tokens, resize these leaves of the params first, or merge "
        f"into the checkpoint with {merging}."
    )


def _fits(tree: Tree, sites: Iterable[Site], table: Layout | None = None) -> list[_Fit]:
    """The sites with their forms, each with what is wrong with it."""
    found: list[_Fit] = []
    for site in sites:
        bias = form_of("bias", tree, site.bias) if site.bias else None
        if site.weight:
            read = read_weight(tree, site, site.weight, table)
            chain = transposed_chain(site.chain) if read.transposed else site.chain
            fitted = replace(
                site,
                chain=chain,
                weight_form=read.form,
                bias_form=bias,
                transposed=read.transposed,
            )
            reason = read.misfit or _bias_misfit(tree, fitted)
            found.append(_Fit(fitted, reason, read.is_unclear))
        else:
            size = site.bias and np.prod(site.bias.shape(tree.leaf(site.bias).shape), dtype=int)
            reason = misfit(site.chain, (int(size), 1)) if size is not None else None
            found.append(_Fit(replace(site, bias_form=bias), reason))
    return found


def _bias_misfit(tree: Tree, site: Site) -> str | None:
    """Why a site's bias can't belong to its weight, or None."""
    if not (site.weight and site.bias and site.weight_form):
        return None
    rows, columns = site.weight_form.shape(tree.leaf(site.weight).shape)
    size = math.prod(site.bias.shape(tree.leaf(site.bias).shape))
    if size == rows or (site.transposed and size == columns):
        return None
    return f"its bias {site.bias.leaf} has size {size}, expected {rows}, one number per output"


def _misfits(fits: Iterable[_Fit]) -> list[str]:
    """Messages about what does not fit, one per site."""
    return [f"{fit.site.name}: {fit.misfit}" for fit in fits if fit.misfit]
