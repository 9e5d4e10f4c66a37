"""Plans how each tensor of a checkpoint is computed, by which updates.

Everything that can fail is checked here, from shapes alone, before tensors are read or written.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import chain
from typing import Any

import jax
import numpy as np

from jaxmix.adapter import chains_by_site
from jaxmix.apply.joined import Joint, joints_of
from jaxmix.converters.checkpoints.huggingface import FLOATS, Checkpoint, Stored
from jaxmix.converters.merging.quantized import refusal
from jaxmix.converters.merging.recipe import FusedWeight, Recipe, Share
from jaxmix.errors import LayoutError
from jaxmix.mixing import Mix
from jaxmix.placement import Site, resolve
from jaxmix.placement.layout import Layout, named
from jaxmix.placement.spelling import Spellings, respelled

__all__ = ["plan_recipes", "precision", "resolve_layout"]


def plan_recipes(checkpoint: Checkpoint, mixed: Mix, layout: Layout) -> dict[str, Recipe]:
    """Returns the recipe of each tensor that changes, or raises if an update does not fit.

    Args:
        checkpoint: The base.
        mixed: The adapters.
        layout: Where their sites are, as `resolve_layout` returns it.

    Returns:
        ``{name: recipe}``, in the order of the files.

    Raises:
        LayoutError: If a site matches no tensor, or a tensor that is not of floats.
        ShapeError: If factors do not fit their weights.
    """
    tensors, chains = checkpoint.tensors, chains_by_site(mixed.parts)
    leaves = list(_leaves(chains, layout, tensors))
    touched = {name: tensors[name] for name in leaves if name in tensors}
    if message := refusal(checkpoint, leaves):
        raise LayoutError(message)
    sites: list[Site] = []

    def probe(params: Any) -> None:
        sites.extend(resolve(params, chains, layout).sites)

    shapes = {
        name: jax.ShapeDtypeStruct(tensor.shape, FLOATS.get(tensor.dtype, np.int8))
        for name, tensor in tensors.items()
    }
    with precision(touched.values()):
        jax.eval_shape(probe, shapes)
    shares: dict[str, list[Share]] = {}
    joints = joints_of(sites)
    for site in sites:
        for name, share in _shares(site, tensors, joints.get(site.name)):
            shares.setdefault(name, []).append(share)
    return {
        name: Recipe(tensor, tuple(shares[name]))
        for name, tensor in tensors.items()
        if name in shares
    }


def _shares(
    site: Site, tensors: Mapping[str, Stored], joint: Joint | None
) -> Iterator[tuple[str, Share]]:
    """Yields the updates to a site's bias and to its weight, with the names of these tensors."""
    weight, bias = site.weight, site.bias
    fused = None
    if joint:
        places = [place for part in joint.sites for place in (part.weight, part.bias) if place]
        part_tensors = {place.leaf: tensors[place.leaf] for place in places}
        fused = FusedWeight(joint, site.name, part_tensors)
    if bias and site.bias_form:
        reads = weight if site.reads_base and not joint else None
        base = tensors[reads.leaf] if reads else None
        yield bias.leaf, Share(site.name, site.chain, site.bias_form, base, site.weight_form, fused)
    if weight and site.weight_form and site.changes_weight:
        yield weight.leaf, Share(site.name, site.chain, site.weight_form, fused=fused)


def _leaves(sites: Iterable[str], layout: Layout, tensors: Collection[str]) -> Iterator[str]:
    """Yields the names of the tensors that sites may have, without duplicates."""
    seen: set[str] = set()
    spellings = Spellings(tensors)
    for site in sites:
        for place in chain(*respelled(layout, site, tensors, spellings).values()):
            if place.leaf not in seen:
                seen.add(place.leaf)
                yield place.leaf


def precision(tensors: Iterable[Stored]) -> AbstractContextManager[Any]:
    """Returns a context in which JAX keeps float64, if any tensor has that dtype."""
    is_wide = any(tensor.dtype == "F64" for tensor in tensors)
    return jax.enable_x64(True) if is_wide else nullcontext()


def resolve_layout(layout: Layout | str | None) -> tuple[Layout, bool]:
    """Returns the layout, and whether tied tensors are to be found by name.

    `compose` finds ties by the names in a tree. Those of a checkpoint are in its config.json and
    are resolved earlier, so the returned layout does not use names for that.
    """
    known = named(layout)
    return (replace(known, by_name=False), True) if known.by_name else (known, False)
