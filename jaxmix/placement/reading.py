"""How a leaf of a tree is read as the weight that a site's updates are for: which way it lies."""

from dataclasses import dataclass, replace

import numpy as np

from jaxmix.families.base import Chain, joint_flag
from jaxmix.placement.devices import sharding_of
from jaxmix.placement.form import Form
from jaxmix.placement.layout import KERNEL, Layout, Part, Place
from jaxmix.placement.orientation import may_be_conv1d
from jaxmix.placement.sites import Site, Tree

__all__ = ["Reading", "form_of", "misfit", "read_weight", "turned_word"]


@dataclass(frozen=True)
class Reading:
    """How a leaf holds a site's weight.

    Args:
        form: Its form; None if the updates don't fit it.
        turned: Whether PyTorch stores the weight as (in, out), so that the updates are turned.
        misfit: What does not fit, in words; None if all does.
        is_unclear: Whether it may as well lie the other way.
    """

    form: Form | None
    turned: bool = False
    misfit: str | None = None
    is_unclear: bool = False


def read_weight(tree: Tree, site: Site, place: Place, table: Layout | None) -> Reading:
    """Reads a weight as the matrix (out, in) that fits a site's updates.

    PyTorch stores a linear weight as (out, in), but GPT-2's Conv1D as (in, out). That is the
    module's matter: the layout may say it, then the tree is asked, and then the updates. One that
    was read from a file of PEFT with ``fan_in_fan_out`` does not know it: the file has one flag for
    all layers, which PEFT itself corrects for each by its class, and what is written is what held
    for the last one.

    Args:
        tree: The params.
        site: The site.
        place: Where its weight lies in them.
        table: The layout, if it is known.

    Returns:
        The weight's form, or why no form fits.
    """
    shape = place.shape(tree.leaf(place).shape)
    form = form_of("weight", tree, place)
    if len(shape) != 2:
        return _first_fit(site.word, [(form, False)], shape)
    flag = joint_flag(update.transposed for _, update in site.word)
    stated = table.is_conv1d(site.name) if table else None
    if place.axes is None:
        lies = [stated] if stated is not None else _orientations(tree, site, place, flag)
        ways = [(replace(form, transposed=way), way) for way in lies]
        found = _first_fit(site.word, ways, shape)
        if stated is None and flag is None and len(lies) == 2:
            other = _first_fit(site.word, ways[::-1], shape)
            return replace(found, is_unclear=found.turned != other.turned)
        return found
    if place.index is None and _swaps(place.axes):
        # A Flax kernel (in, out): its transpose is the matrix, and nothing has to move.
        is_plain = place.axes == KERNEL and tree.out_axes.of(place.leaf) == 0
        plain = replace(form, axes=None, transposed=not is_plain)
        says = stated if stated is not None else flag
        turned = may_be_conv1d(place.leaf) if says is None else says
        matrix = shape[::-1] if is_plain else shape
        return _first_fit(site.word, [(plain, turned), (plain, not turned)], matrix, at_rest=True)
    return _first_fit(site.word, [(form, bool(flag))], shape, at_rest=True)


def _orientations(tree: Tree, site: Site, place: Place, flag: bool | None) -> list[bool]:
    """Whether PyTorch stores a weight as (in, out): the answers that can be, the likelier first."""
    if place.leaf.removeprefix("params.") == site.name:
        # A parameter by itself, of no layer: its updates lie as it does.
        return [True, False] if flag else [False]
    axis = tree.out_axes.of(place.leaf) if place.index is None else None
    if axis is not None:
        return [axis == 1]
    if flag is not None:
        return [True, False] if flag else [False]
    is_linear = tree.out_axes.is_linear(place.leaf)
    return [False] if is_linear else [False, True]


def _first_fit(
    word: Chain,
    ways: list[tuple[Form, bool]],
    shape: tuple[int, ...],
    *,
    at_rest: bool = False,
) -> Reading:
    """The first way to read a weight that fits a word.

    Args:
        word: The updates.
        ways: Each with its form, and whether the updates are turned.
        shape: PyTorch's, or the matrix (out, in) itself.
        at_rest: Whether the shape is the matrix's, whichever way the updates lie.
    """
    rows, cols = shape[0], int(np.prod(shape[1:], dtype=int))
    first: str | None = None
    for form, turned in ways:
        size = (cols, rows) if turned and not at_rest else (rows, cols)
        why = misfit(turned_word(word) if turned else word, size)
        if why is None:
            return Reading(form, turned)
        first = first or why
    return Reading(None, misfit=first)


def form_of(part: Part, tree: Tree, place: Place) -> Form:
    """How a leaf holds a tensor, as its place says.

    Args:
        part: Whether the leaf is a weight or a bias.
        tree: The params.
        place: Where the leaf lies in them.

    Returns:
        The form, not yet turned.
    """
    leaf = tree.leaf(place)
    factor = place.factor(tuple(leaf.shape))
    return Form(
        part, place.axes, place.index, False, sharding_of(leaf), sizes=place.sizes, scale=factor
    )


def turned_word(word: Chain) -> Chain:
    """The word at a weight that PyTorch has as (in, out)."""
    return tuple((strength, update.turned()) for strength, update in word)


def misfit(word: Chain, shape: tuple[int, int]) -> str | None:
    """The first thing in a word that does not fit a matrix (out, in), or None."""
    return next((why for _, update in word if (why := update.misfit(shape))), None)


def _swaps(axes: str) -> bool:
    """Whether a pattern merely exchanges the two axes of a matrix."""
    here, there = ([n for n in side.split() if n != "..."] for side in axes.split("->"))
    return len(here) == 2 and there == here[::-1]
