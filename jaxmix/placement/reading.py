"""Reads a leaf as the weight that a site's updates change, in the orientation that fits."""

from dataclasses import dataclass, replace

import numpy as np

from jaxmix.families.base import Chain, joint_flag
from jaxmix.placement.devices import sharding_of
from jaxmix.placement.form import Form
from jaxmix.placement.layout import KERNEL, Layout, Part, Place
from jaxmix.placement.orientation import may_be_conv1d
from jaxmix.placement.sites import Site
from jaxmix.placement.tree import Tree

__all__ = ["Reading", "form_of", "misfit", "read_weight", "transposed_chain"]


@dataclass(frozen=True)
class Reading:
    """How a leaf holds a site's weight.

    Args:
        form: Its form; None if the updates do not fit it.
        transposed: Whether PyTorch stores the weight as (in, out) and the updates are transposed.
        misfit: What does not fit, as a message; None if everything does.
        is_unclear: Whether the other orientation is just as likely.
    """

    form: Form | None
    transposed: bool = False
    misfit: str | None = None
    is_unclear: bool = False


def read_weight(tree: Tree, site: Site, place: Place, table: Layout | None) -> Reading:
    """Reads a weight as the matrix (out, in) that fits a site's updates.

    PyTorch stores a linear weight as (out, in), but GPT-2's Conv1D as (in, out). The layout may
    state which; otherwise the tree's leaves decide, and then the updates. PEFT's
    ``fan_in_fan_out`` is not reliable: it is one flag for all layers, which PEFT corrects for each
    layer by its class and saves as it was for the last one.

    Args:
        tree: The params.
        site: The site.
        place: Where its weight is.
        table: The layout, if it is known.

    Returns:
        The weight's form, or the reason why none fits.
    """
    shape = place.shape(tree.leaf(place).shape)
    form = form_of("weight", tree, place)
    if len(shape) != 2:
        return _first_fit(site.chain, [(form, False)], shape)
    flag = joint_flag(update.transposed for _, update in site.chain)
    stated = table.is_conv1d(site.name) if table else None
    if place.axes is None:
        answers = [stated] if stated is not None else _orientations(tree, site, place, flag)
        candidates = [(replace(form, transposed=answer), answer) for answer in answers]
        found = _first_fit(site.chain, candidates, shape)
        if stated is None and flag is None and len(answers) == 2:
            swapped = _first_fit(site.chain, candidates[::-1], shape)
            return replace(found, is_unclear=found.transposed != swapped.transposed)
        return found
    if place.index is None and _swaps(place.axes):
        # A Flax kernel (in, out): its transpose is the matrix, without moving anything.
        is_plain = place.axes == KERNEL and tree.out_axes.of(place.leaf) == 0
        plain = replace(form, place=replace(form.place, axes=None), transposed=not is_plain)
        answer = stated if stated is not None else flag
        transposed = may_be_conv1d(place.leaf) if answer is None else answer
        matrix = shape[::-1] if is_plain else shape
        return _first_fit(
            site.chain, [(plain, transposed), (plain, not transposed)], matrix, is_matrix=True
        )
    return _first_fit(site.chain, [(form, bool(flag))], shape, is_matrix=True)


def _orientations(tree: Tree, site: Site, place: Place, flag: bool | None) -> list[bool]:
    """Possible answers to whether PyTorch stores a weight as (in, out), likeliest first."""
    if place.leaf.removeprefix("params.") == site.name:
        # A parameter outside of any layer: its updates have its orientation.
        return [True, False] if flag else [False]
    axis = tree.out_axes.of(place.leaf) if place.index is None else None
    if axis is not None:
        return [axis == 1]
    if flag is not None:
        return [True, False] if flag else [False]
    is_linear = tree.out_axes.is_linear(place.leaf)
    return [False] if is_linear else [False, True]


def _first_fit(
    chain: Chain,
    candidates: list[tuple[Form, bool]],
    shape: tuple[int, ...],
    *,
    is_matrix: bool = False,
) -> Reading:
    """Returns the first reading of a weight that fits a chain.

    Args:
        chain: The updates.
        candidates: Forms, each with whether the updates are transposed.
        shape: PyTorch's shape, or that of the matrix (out, in).
        is_matrix: Whether the shape is the matrix's, even for transposed updates.
    """
    rows, cols = shape[0], int(np.prod(shape[1:], dtype=int))
    first: str | None = None
    for form, transposed in candidates:
        size = (cols, rows) if transposed and not is_matrix else (rows, cols)
        reason = misfit(transposed_chain(chain) if transposed else chain, size)
        if reason is None:
            return Reading(form, transposed)
        first = first or reason
    return Reading(None, misfit=first)


def form_of(part: Part, tree: Tree, place: Place) -> Form:
    """Returns how a leaf holds a tensor at a place.

    Args:
        part: Whether the leaf is a weight or a bias.
        tree: The params.
        place: Where the tensor is.

    Returns:
        The form, not transposed.
    """
    leaf = tree.leaf(place)
    factor = place.factor(tuple(leaf.shape))
    nameless = replace(place.literal(tuple(leaf.shape)), leaf="", scale=1.0)
    return Form(part, nameless, False, sharding_of(leaf), factor)


def transposed_chain(chain: Chain) -> Chain:
    """Returns the chain for a weight that PyTorch stores as (in, out)."""
    return tuple((strength, update.with_transposed_weight()) for strength, update in chain)


def misfit(chain: Chain, shape: tuple[int, int]) -> str | None:
    """Returns the first thing in a chain that does not fit a matrix (out, in); None if all fits."""
    return next((reason for _, update in chain if (reason := update.misfit(shape))), None)


def _swaps(axes: str) -> bool:
    """Whether a pattern only exchanges the two axes of a matrix."""
    left, right = ([n for n in side.split() if n != "..."] for side in axes.split("->"))
    return len(left) == 2 and right == left[::-1]
