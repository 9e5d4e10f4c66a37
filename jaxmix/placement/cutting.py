"""Renames updates to a tree's modules, and cuts them where a weight is several leaves there."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from jaxmix.errors import LayoutError, listing, option, remedy
from jaxmix.families.base import Update
from jaxmix.families.expert_lora import ExpertLoRA
from jaxmix.families.rows import expert_of, rows_of
from jaxmix.placement.canonical import Modules, Target, UnmappedError
from jaxmix.placement.fused import UncutError, parts_together
from jaxmix.placement.layout import Layout
from jaxmix.placement.part_places import part_place
from jaxmix.placement.place import Part, Place
from jaxmix.placement.regions import WHOLE, Region

__all__ = ["Renamed", "cut_where_shared", "updates_on", "with_places"]


@dataclass(frozen=True)
class Renamed:
    """An adapter's updates under the names of a tree's modules.

    Args:
        updates: ``{site: update}``; sites that the tree does not have keep their names.
        places: The places of sites that share a leaf with others.
        original: ``{new name: site}`` of the updates that were renamed but not cut.
        regions: ``{new name: part of its leaf}`` of the sites in `places`.
    """

    updates: dict[str, Update]
    places: dict[str, Mapping[Part, Place]] = field(default_factory=dict)
    original: dict[str, str] = field(default_factory=dict)
    regions: dict[str, Region] = field(default_factory=dict)


def updates_on(
    updates: Mapping[str, Update], modules: Modules, adapter: str, *, joins: bool = False
) -> Renamed:
    """Renames an adapter's updates to a tree's own names.

    An adapter whose sites are all in the tree keeps its names. Otherwise each site is looked up as
    a name in memory, then as an older name that transformers renames when it loads a checkpoint.
    If the site is one leaf, it gets the leaf's name; if it is several, such as the experts of a
    stack, each gets its part of the update; if a leaf holds several sites, their places in it are
    recorded.

    Args:
        updates: ``{site: update}``.
        modules: The tree's modules.
        adapter: The adapter's name, for messages.
        joins: Whether an update that can't be cut becomes a `PartOf` at each part of its weight.

    Returns:
        The updates under their new names.

    Raises:
        LayoutError: If a site matches several modules, or its update can't be cut.
    """
    if modules.stored.issuperset(updates):
        _check_names(updates, modules, adapter)
        return Renamed(dict(updates))
    by_name: dict[str, list[tuple[str, Update]]] = {}
    places: dict[str, Mapping[Part, Place]] = {}
    regions: dict[str, Region] = {}
    unclear: dict[str, tuple[str, ...]] = {}
    problems: list[str] = []
    for site, update in updates.items():
        matches = modules.in_memory(site)
        if len(matches) > 1 and site not in matches:
            unclear[site] = matches
            continue
        if matches:
            by_name.setdefault(site if site in matches else matches[0], []).append((site, update))
            continue
        try:
            targets = modules.targets(site) or (Target(site),)
            columns = [_columns(target, modules) for target in targets]
            for target, part in _parts_of(update, targets, columns, joins):
                by_name.setdefault(target.site, []).append((site, part))
                if target.places:
                    places[target.site], regions[target.site] = target.places, target.region
        except UnmappedError as error:
            problems.append(f"{site}: {error}")
    repeated = {name: sites for name, sites in by_name.items() if len(sites) > 1}
    lines = [f"{site}: {' and '.join(matches)}" for site, matches in unclear.items()]
    lines += [f"{name}: {' and '.join(s for s, _ in sites)}" for name, sites in repeated.items()]
    if lines:
        raise _ambiguous(lines, adapter, modules)
    if problems:
        raise LayoutError(
            f"adapter {adapter!r}: sites that can't be mapped to the weights, which have the names "
            f"of {modules.names.name}:{listing(problems)}"
        )
    new = {name: update for name, [(_, update)] in by_name.items()}
    original = {
        name: site
        for name, [(site, update)] in by_name.items()
        if name != site and update is updates[site]
    }
    return Renamed(new, places, original, regions)


def cut_where_shared(
    found: Sequence[Renamed], shapes: Mapping[str, tuple[int, ...]], *, joins: bool = False
) -> list[Renamed]:
    """Cuts updates of whole leaves where other adapters change parts of the same leaf.

    Args:
        found: The updates of each adapter, in order of application.
        shapes: The shape of each leaf, by its name.
        joins: As in `updates_on`.

    Returns:
        The same, with an update for each part of these leaves, under the parts' names.

    Raises:
        LayoutError: If an update can't be cut.
    """
    shared: dict[str, Region] = {}
    for renamed in found:
        for site, region in renamed.regions.items():
            if region != WHOLE:
                shared[renamed.places[site]["weight"].leaf] = region
    if not shared:
        return list(found)
    return [_cut_on(renamed, shared, shapes, joins) for renamed in found]


def _cut_on(
    renamed: Renamed,
    shared: Mapping[str, Region],
    shapes: Mapping[str, tuple[int, ...]],
    joins: bool,
) -> Renamed:
    """One adapter's updates, cut on the leaves of which others change parts."""
    updates, places = dict[str, Update](), dict(renamed.places)
    for site, update in renamed.updates.items():
        leaf = next((name for name in (f"{site}.weight", site) if name in shared), None)
        own = places.get(site, {})
        if leaf is None or (own and own["weight"] != Place(leaf)):
            updates[site] = update
            continue
        places.pop(site, None)
        bias = own["bias"].leaf if "bias" in own else f"{leaf.removesuffix('.weight')}.bias"
        targets = list(_parts_of_leaf(leaf, bias, shared[leaf], shapes))
        try:
            parts = _parts_of(update, targets, [shapes[leaf][-1]] * len(targets), joins)
        except UnmappedError as error:
            raise LayoutError(
                f"{site}: another adapter changes a part of it, and {error}."
            ) from None
        for target, part in parts:
            if target.site in renamed.updates:
                raise LayoutError(
                    f"{site}: the same adapter changes a part of it, {target.site}. Give its rows "
                    "one update."
                )
            updates[target.site], places[target.site] = part, target.places or {}
    return replace(renamed, updates=updates, places=places)


def _parts_of_leaf(
    leaf: str, bias: str, like: Region, shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[Target]:
    """All parts of a leaf that is divided like one given region."""
    shape = shapes[leaf]
    numbers = range(shape[0]) if like.expert >= 0 else [-1]
    rows = shape[-2] if like.expert >= 0 else shape[0]
    parts = [replace(like, part=k).rows(rows) for k in range(like.parts)]
    sizes = tuple(len(range(rows)[part]) for part in parts if part is not None)
    for region in (replace(like, expert=e, part=k) for e in numbers for k in range(like.parts)):
        places: dict[Part, Place] = {"weight": part_place(leaf, shape, region)}
        if like.expert < 0 and bias in shapes:
            places["bias"] = part_place(bias, shapes[bias], region)
        name = f"{leaf.removesuffix('.weight')}[{places['weight'].index}]"
        yield Target(name, region, sizes, places, len(numbers))


def with_places(table: Layout, places: Mapping[str, Mapping[Part, Place]]) -> Layout:
    """Returns a layout that also has the places of single sites.

    Args:
        table: The layout.
        places: ``{site: places}``.
    """
    return replace(table, places_of={**table.places_of, **places}) if places else table


def _check_names(updates: Mapping[str, Update], modules: Modules, adapter: str) -> None:
    """Refuses names on disk that are another module's in memory.

    Some renamings shift names (norm0 to norm1, norm1 to norm2), so a name may mean either module.
    """
    unclear = {site: matches for site in updates if (matches := modules.in_memory(site))}
    lines = [
        f"{site}: {' and '.join((site, *matches))}"
        for site, matches in unclear.items()
        if site not in matches
    ]
    if lines:
        raise _ambiguous(lines, adapter, modules)


def _ambiguous(lines: list[str], adapter: str, modules: Modules) -> LayoutError:
    return LayoutError(
        f"adapter {adapter!r}: sites that match the weights' modules in several ways:"
        f"{listing(lines)}\nThe names in memory are those of the name map "
        f"{modules.names.name}. Rename the adapter's sites to those of the weights, or disable the "
        f"map: {option('names', '')}."
    )


def _parts_of(
    update: Update, targets: Sequence[Target], columns: Sequence[int], joins: bool
) -> list[tuple[Target, Update]]:
    """The targets of an update with their parts of it, or with all of it if it can't be cut."""
    pairs = zip(targets, columns, strict=True)
    try:
        return [(target, _part_of(update, target, count)) for target, count in pairs]
    except UncutError as error:
        if joins:
            return parts_together(update, targets, error)
        raise UncutError(
            f"{error}, or merge it with {remedy('jaxmix.compose', '`jaxmix merge`')}, which joins "
            "these weights"
        ) from None


def _part_of(update: Update, target: Target, columns: int) -> Update:
    """The part of an update that applies to a target."""
    cut = target.cut
    if cut == WHOLE:
        return update
    part: Update | None = update
    rows = slice(None)
    if cut.parts > 1:
        rows = replace(cut, sizes=target.siblings, is_ratio=False).rows(sum(target.siblings))
        assert rows is not None
    if isinstance(update, ExpertLoRA):
        if target.experts > 0 and update.a.shape[0] != target.experts:
            raise UnmappedError(
                f"the adapter has factors of {update.a.shape[0]} experts, expected {target.experts}"
            )
        if cut.expert < 0:
            return _stack_rows(update, rows)
    if cut.expert >= 0:
        part = expert_of(update, cut.expert)
    if part is not None and cut.parts > 1:
        part = rows_of(part, rows, (sum(target.siblings), columns)) if cut.axis == 0 else None
    if part is None:
        raise UncutError(
            f"its {update.family} mixes numbers of several weights, of which {target.site} is one, "
            "so it can't be applied to them separately. Apply it to a model that has the adapter's "
            "names"
        )
    return part


def _stack_rows(update: ExpertLoRA, part: slice) -> ExpertLoRA:
    """The rows of every expert's matrix."""
    if update.in_first:
        return replace(update, a=update.a[:, :, part])
    return replace(update, b=update.b[:, part])


def _columns(target: Target, modules: Modules) -> int:
    """The input size of a target's weight."""
    names = [f"{target.site}.weight", target.site]
    if target.places:
        names = [target.places["weight"].leaf]
    shapes = (modules.shapes[name] for name in names if name in modules.shapes)
    shape = next(shapes, None)
    if shape is None:
        return 0
    return shape[-1] if target.region.expert >= 0 else math.prod(shape[1:])
