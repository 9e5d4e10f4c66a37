"""What a mix does to a checkpoint: which tensor is made of what, and by which maps.

Everything that can go wrong is looked at here, on shapes alone, before anything is read or written.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import chain
from typing import Any

import jax
import numpy as np

from jaxmix.adapter import words
from jaxmix.converters.checkpoints.huggingface import FLOATS, Checkpoint, Stored
from jaxmix.converters.merging.quantized import refusal
from jaxmix.converters.merging.recipe import Recipe, Share
from jaxmix.errors import LayoutError
from jaxmix.mixing import Mix
from jaxmix.placement import Site, resolve
from jaxmix.placement.layout import Layout, named
from jaxmix.placement.spelling import Spellings, respelled

__all__ = ["plan", "precision", "table_of"]


def plan(checkpoint: Checkpoint, mixed: Mix, layout: Layout) -> dict[str, Recipe]:
    """How each tensor that changes is made; whatever does not fit is raised here.

    Args:
        checkpoint: the base.
        mixed: the adapters.
        layout: where their sites lie, as `table_of` gives it.

    Returns:
        ``{name: recipe}``, in the order of the files.

    Raises:
        LayoutError: if sites find no tensor, or one that is not of floats.
        ShapeError: if factors do not fit their weights.
    """
    tensors, word_at = checkpoint.tensors, words(mixed.parts)
    leaves = list(_leaves(word_at, layout, tensors))
    touched = {name: tensors[name] for name in leaves if name in tensors}
    if why := refusal(checkpoint, leaves):
        raise LayoutError(why)
    found: list[Site] = []

    def probe(params: Any) -> None:
        found.extend(resolve(params, word_at, layout).sites)

    shapes = {
        name: jax.ShapeDtypeStruct(tensor.shape, FLOATS.get(tensor.dtype, np.int8))
        for name, tensor in tensors.items()
    }
    with precision(touched.values()):
        jax.eval_shape(probe, shapes)
    shares: dict[str, list[Share]] = {}
    for site in found:
        for name, share in _shares(site, tensors):
            shares.setdefault(name, []).append(share)
    return {
        name: Recipe(tensor, tuple(shares[name]))
        for name, tensor in tensors.items()
        if name in shares
    }


def _shares(site: Site, tensors: Mapping[str, Stored]) -> Iterator[tuple[str, Share]]:
    """What a site does to its bias and to its weight, by the names of these tensors."""
    weight, bias = site.weight, site.bias
    if bias and site.bias_form:
        reads = weight if site.reads_base else None
        base = tensors[reads.leaf] if reads else None
        yield bias.leaf, Share(site.name, site.chain, site.bias_form, base, site.weight_form)
    if weight and site.weight_form and site.changes_weight:
        yield weight.leaf, Share(site.name, site.chain, site.weight_form)


def _leaves(sites: Iterable[str], layout: Layout, tensors: Collection[str]) -> Iterator[str]:
    """The names of the tensors that sites may own, once each."""
    seen: set[str] = set()
    spellings = Spellings(tensors)
    for site in sites:
        for place in chain(*respelled(layout, site, tensors, spellings).values()):
            if place.leaf not in seen:
                seen.add(place.leaf)
                yield place.leaf


def precision(tensors: Iterable[Stored]) -> AbstractContextManager[Any]:
    """Where tensors are float64, JAX has to be told not to make float32 of them."""
    is_wide = any(tensor.dtype == "F64" for tensor in tensors)
    return jax.enable_x64(True) if is_wide else nullcontext()


def table_of(layout: Layout | str | None) -> tuple[Layout, bool]:
    """The layout meant, and whether it is one with which ties are looked for.

    `compose` looks for them by the names of a tree. A checkpoint's are in its config.json, and are
    undone before; so the table goes on as one that says nothing of names.
    """
    known = named(layout)
    return (replace(known, by_name=False), True) if known.by_name else (known, False)
