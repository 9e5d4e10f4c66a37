"""Sites at tied embeddings: refused, or updated once if both sides were trained as one."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from jaxmix.families import LoRA, Replace, Update, parts_of
from jaxmix.families.base import Chain
from jaxmix.placement.layout import Layout
from jaxmix.placement.ties import HEADS, Ties, is_embedding

__all__ = ["bias_alone", "is_same_chain", "tied_sites", "trained_as_one", "without_copies"]


def tied_sites(
    names: Collection[str], ties: Ties, chains: Mapping[str, Chain], table: Layout
) -> Iterator[str]:
    """Describes the sites whose weight is tied to another.

    With a layout by names, the names decide. Another layout shows a tie if it has the head in the
    same leaf, or a leaf for the head that the tree lacks.

    Args:
        names: The dotted names of all leaves of the tree.
        ties: What these names show about ties.
        chains: ``{site: ((strength, update), …)}``.
        table: The layout.

    Yields:
        A line for each.
    """
    heads: dict[str, str] = {}
    missing: list[str] = []
    for head in () if table.by_name else HEADS:
        places = table.places(head, "weight")
        heads.update({place.leaf: head for place in places if place.leaf in names})
        # A rule that matches every name does not show that there is a head.
        is_known = len(places) > len(table.places("-", "weight"))
        if is_known and not any(place.leaf in names for place in places):
            missing.append(head)
    for site, chain in chains.items():
        if not any(update.has_weight and not update.keeps_tie for _, update in chain):
            continue
        if table.by_name:
            if problem := ties.problem(site):
                yield f"{problem}. {ties.advice(site)}"
            continue
        for place in table.places(site, "weight"):
            head = heads.get(place.leaf, site)
            if head != site and not _is_spelling(table, site, head):
                yield (
                    f"{site}: the layout {table.name!r} has {head} in the same leaf {place.leaf}. "
                    "PEFT's forward changes one side only: give the head a leaf and a rule of its "
                    "own, or none"
                )
            elif missing and not heads and is_embedding(site) and place.leaf in names:
                yield (
                    f"{site}: the layout {table.name!r} has a leaf for {missing[0]}, but the tree "
                    "has none, so that the embedding is the head too (tied). PEFT's forward "
                    "changes one side only: give the head a leaf of its own; or, if the model "
                    "has no head at all, pass a jaxmix.Layout without a rule for one"
                )


def _is_spelling(table: Layout, site: str, head: str) -> bool:
    """Whether a rule has a site as another name of the head, as those of image models do."""
    return not is_embedding(site) and any(
        rule.place(head) is not None and rule.place(head) == rule.place(site)
        for rule in table.rules
    )


def trained_as_one(
    chains: Mapping[str, Chain], names: Collection[str], ties: Ties
) -> tuple[frozenset[str], frozenset[str]]:
    """Finds an embedding and its tied head that adapters change in the same way.

    PEFT's ``ensure_weight_tying`` trains both as one and saves both. They stay equal then, and the
    leaf that they share takes the update once.

    Args:
        chains: ``{site: ((strength, update), …)}``.
        names: The dotted names of all leaves of the tree.
        ties: What these names show about ties.

    Returns:
        The sites that were trained as one, and those among them without a leaf of their own. Both
        are empty if the updates differ or are traced.
    """
    weights = {name.removeprefix("params.").rpartition(".")[0] for name in names}
    sites = [
        site
        for site, chain in chains.items()
        if (site in HEADS or is_embedding(site))
        and any(update.has_weight and not update.keeps_tie for _, update in chain)
        and ties.problem(site)
    ]
    copies = frozenset(site for site in sites if site not in weights)
    if len(sites) in (0, len(copies)) or not copies:
        return frozenset(), frozenset()
    first, *rest = (chains[site] for site in sites)
    if not all(is_same_chain(first, chain) for chain in rest):
        return frozenset(), frozenset()
    for shared in (site for site in sites if site.rpartition(".")[2] == "shared"):
        outer = shared.removesuffix("shared")
        for stack in (f"{outer}encoder.", f"{outer}decoder."):
            has_stack = any(module.startswith(stack) for module in weights)
            if has_stack and f"{stack}embed_tokens" not in sites:
                return frozenset(), frozenset()
    return frozenset(sites), copies


def bias_alone(
    site: str, update: Update, names: Collection[str]
) -> tuple[str, Update] | tuple[None, None]:
    """Returns a head's update of the bias, if the embedding's leaf takes that of the weight.

    Args:
        site: The head.
        update: The head's update.
        names: The dotted names of all leaves of the tree.

    Returns:
        The site that has the bias (in BERT, the module above the tied decoder), and the update of
        the bias; both None if there is none.
    """
    parts = [part for part in parts_of(update) if isinstance(part, Replace) and part.has_bias]
    if not parts:
        return None, None
    above = site.rpartition(".")[0]
    is_above = any(name.removeprefix("params.") == f"{above}.bias" for name in names)
    return above if is_above else site, replace(parts[-1], weight=None)


def without_copies(
    chains: Mapping[str, Chain], copies: Collection[str], names: Collection[str]
) -> dict[str, Chain]:
    """Returns the chains without sites whose weight is another's leaf, except for their biases.

    Args:
        chains: ``{site: ((strength, update), …)}``.
        copies: The sites without a leaf of their own, as `trained_as_one` returns them.
        names: The dotted names of all leaves of the tree.
    """
    out = {site: chain for site, chain in chains.items() if site not in copies}
    for site in copies:
        for strength, update in chains[site]:
            owner, bias = bias_alone(site, update, names)
            if owner is not None and bias is not None:
                out[owner] = (*out.get(owner, ()), (strength, bias))
    return out


def is_same_chain(left: Chain, right: Chain) -> bool:
    """Returns whether two chains do the same to one weight.

    Args:
        left: Strengths and updates, in order of application.
        right: The other chain; its updates may be of an embedding, those of ``left`` of a head.
    """
    return len(left) == len(right) and all(
        _is_equal(s, t) and _is_same_update(u, v)
        for (s, u), (t, v) in zip(left, right, strict=True)
    )


def _is_same_update(left: Update, right: Update) -> bool:
    """Whether two updates, of an embedding and of a head, do the same to one weight."""
    ours, theirs = (
        tuple(_as_linear(part) for part in parts_of(update) if part.has_weight)
        for update in (left, right)
    )
    leaves, structure = jax.tree.flatten(ours)
    others, other_structure = jax.tree.flatten(theirs)
    return structure == other_structure and all(map(_is_equal, leaves, others))


def _as_linear(update: Update) -> Update:
    """Returns an update of the weight alone, an embedding's LoRA as that of a linear layer."""
    if isinstance(update, Replace):
        return replace(update, bias=None)
    if isinstance(update, LoRA) and update.embedding and update.magnitude is None:
        return replace(update, embedding=False)
    return update


def _is_equal(left: Any, right: Any) -> bool:
    """Whether two leaves are equal; traced leaves are only if they are the same object."""
    if left is right:
        return True
    if isinstance(left, Tracer) or isinstance(right, Tracer):
        return False
    return np.shape(left) == np.shape(right) and bool(np.array_equal(left, right))
