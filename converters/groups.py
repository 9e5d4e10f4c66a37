"""What a mix does to a checkpoint: who computes which tensor, and from what.

Everything that can go wrong is looked at here, on shapes alone, before anything is read or written.
"""

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxmix.adapter import Adapter
from jaxmix.converters.huggingface import FLOATS, Checkpoint, Stored
from jaxmix.errors import LayoutError, listing
from jaxmix.layout import LAYOUTS, NAMES, Layout, Rule
from jaxmix.mix import Mix, compose

__all__ = ["Group", "plan", "table_of"]


@dataclass(frozen=True, eq=False)
class Group:
    """Sites that share tensors, as a rule one site, and what is needed to compute them.

    ``shapes`` are those of the whole checkpoint: how a square weight lies, its namesakes tell.
    """

    sites: tuple[str, ...]
    tensors: tuple[Stored, ...]
    mixed: Mix
    layout: Layout
    shapes: Mapping[str, jax.ShapeDtypeStruct]

    def computed(self) -> dict[str, np.ndarray]:
        """The new tensors, by name."""
        own = {tensor.name: tensor.read() for tensor in self.tensors}
        with _precision(self.tensors):
            out = compose({**self.shapes, **own}, self.mixed, layout=self.layout)
            return {name: np.asarray(out[name]) for name in own}


def plan(
    checkpoint: Checkpoint, mixed: Mix, layout: Layout
) -> tuple[dict[str, Group], frozenset[str]]:
    """Who computes which tensor, and which tensors change; whatever does not fit is raised here."""
    tensors = checkpoint.tensors
    shapes = {
        name: jax.ShapeDtypeStruct(tensor.shape, FLOATS.get(tensor.dtype, np.int8))
        for name, tensor in tensors.items()
    }
    groups = _groups(tensors, mixed, layout, shapes)
    unusable = [
        f"{tensor.name} in {tensor.file.name}: {tensor.dtype}"
        for group in dict.fromkeys(groups.values())
        for tensor in group.tensors
        if tensor.dtype not in FLOATS
    ]
    if unusable:
        raise LayoutError(
            f"{checkpoint.folder}: tensors that can't take an adapter, expected "
            f"{', '.join(FLOATS)}:{listing(unusable)}\nDequantize the checkpoint first."
        )
    changed: set[str] = set()

    def probe(params: dict[str, Any]) -> None:
        out = compose(params, mixed, layout=layout)
        changed.update(name for name in params if out[name] is not params[name])

    with _precision(tensor for group in groups.values() for tensor in group.tensors):
        jax.eval_shape(probe, shapes)
    return groups, frozenset(changed)


def _precision(tensors: Iterable[Stored]) -> AbstractContextManager[Any]:
    """Where tensors are float64, JAX has to be told not to make float32 of them."""
    is_wide = any(tensor.dtype == "F64" for tensor in tensors)
    return jax.enable_x64(True) if is_wide else nullcontext()


def _groups(
    tensors: Mapping[str, Stored],
    mixed: Mix,
    layout: Layout,
    shapes: Mapping[str, jax.ShapeDtypeStruct],
) -> dict[str, Group]:
    """For each tensor that a site may own the group of sites that it belongs to."""
    joined: dict[str, tuple[list[str], list[str]]] = {}
    for site in dict.fromkeys(site for part in mixed.parts for site in part.sites):
        places = (*layout.places(site, "weight"), *layout.places(site, "bias"))
        names = list(dict.fromkeys(place.leaf for place in places if place.leaf in tensors))
        sites = [site]
        # A table may put several sites into one tensor, such as q, k and v.
        for old in {id(joined[name]): joined[name] for name in names if name in joined}.values():
            sites, names = [*old[0], *sites], list(dict.fromkeys([*old[1], *names]))
        joined.update(dict.fromkeys(names, (sites, names)))
    made: dict[int, Group] = {}
    for sites, names in joined.values():
        if id(sites) not in made:
            stored = tuple(tensors[name] for name in names)
            made[id(sites)] = Group(tuple(sites), stored, _only(mixed, sites), layout, shapes)
    return {name: made[id(sites)] for name, (sites, _) in joined.items()}


def _only(mixed: Mix, sites: Iterable[str]) -> Mix:
    """The mix, at these sites."""
    cut = (
        Adapter({s: part.updates[s] for s in sites if s in part.updates}, part.strength, part.name)
        for part in mixed.parts
    )
    return Mix(tuple(part for part in cut if part.updates))


def table_of(layout: Layout | str | None) -> tuple[Layout, bool]:
    """The layout meant, and whether it is one of jaxmix's own, with which ties are looked for.

    `compose` looks for ties with its own tables, too. But it would judge one site's tensors without
    the others, so it is given a table that is equal to none of them: with a rule for nothing.
    """
    name = NAMES.name if layout is None else layout
    known = name if isinstance(name, Layout) else LAYOUTS.get(name)
    if known is None:
        raise LayoutError(
            f"there is no layout {layout!r}, expected None, one of "
            f"{', '.join(map(repr, LAYOUTS))}, or a jaxmix.Layout with rules of your own."
        )
    if known not in LAYOUTS.values():
        return known, False
    return Layout(known.name, (*known.rules, Rule("(?!)", ""))), True
