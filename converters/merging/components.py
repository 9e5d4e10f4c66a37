"""Merges into a pipeline of diffusers: a merge into each component, joined into one output."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain

from jaxmix.adapter import Adapter
from jaxmix.converters.adapters.lycoris.dotted import split_part
from jaxmix.converters.adapters.lycoris.parts import components_of
from jaxmix.converters.checkpoints.huggingface import Checkpoint
from jaxmix.converters.checkpoints.side_files import all_files, side_files
from jaxmix.converters.merging.merge_plan import AllowedChanges, MergePlan, plan_merge
from jaxmix.converters.merging.planning import resolve_layout
from jaxmix.converters.merging.recipe import Recipe
from jaxmix.converters.names import with_stored_names
from jaxmix.errors import JaxmixError, LayoutError, listing, option
from jaxmix.mixing import Mix
from jaxmix.placement.layout import Layout
from jaxmix.placement.naming import Names
from jaxmix.placement.spelling import Spellings, respelled

__all__ = ["plan_pipeline", "split_mix"]


def plan_pipeline(
    pipeline: Checkpoint,
    mixed: Mix,
    layout: Layout | str | None,
    changes: AllowedChanges,
    names: Names = None,
) -> MergePlan:
    """Plans a merge into a pipeline; see `plan_merge`.

    Args:
        pipeline: The base, a checkpoint with components.
        mixed: The adapters. A site's name starts with its component, or is a module of only one.
        layout: As in `merge_checkpoint`, for each component.
        changes: The changes to the base that are allowed.
        names: As in `merge_checkpoint`, for each component.

    Returns:
        A merge whose shards, tensors and side files have the component in their names. Components
        that no adapter names are copied, with all of their files.

    Raises:
        JaxmixError: If the merge is impossible for a component; the message names it.
    """
    mixes = split_mix(mixed, pipeline, layout, names)
    plans: dict[str, MergePlan] = {}
    errors: dict[str, JaxmixError] = {}
    for name, component in pipeline.components.items():
        try:
            plan = plan_merge(component, mixes.get(name, Mix(())), layout, changes, names)
        except JaxmixError as error:
            errors[name] = error
            continue
        if not plan.recipes and not plan.checkpoint.texts:
            plan = replace(plan, side_files=tuple(all_files(component)), left_out=())
        plans[name] = plan
    if errors:
        text = "\n".join(f"{name}: {error}" for name, error in errors.items())
        raise type(next(iter(errors.values())))(text) from next(iter(errors.values()))
    return _join(pipeline, mixed, plans)


def _join(pipeline: Checkpoint, mixed: Mix, plans: Mapping[str, MergePlan]) -> MergePlan:
    """Joins the plans of the components, with the component in all names."""
    shards = [
        shard.in_component(name) for name, plan in plans.items() for shard in plan.checkpoint.shards
    ]
    texts = {
        f"{name}/{file}": text
        for name, plan in plans.items()
        for file, text in plan.checkpoint.texts.items()
    }
    checkpoint = replace(pipeline, shards=tuple(shards), texts=texts)
    tensors, recipes = checkpoint.tensors, {}
    for name, plan in plans.items():
        for tensor, recipe in plan.recipes.items():
            shares = (replace(x, site=f"{name}.{x.site}") for x in recipe.shares)
            full = f"{name}.{tensor}"
            recipes[full] = Recipe(tensors[full], tuple(shares))
    files, left_out = side_files(pipeline)
    inner_files = [f"{name}/{file}" for name, plan in plans.items() for file in plan.side_files]
    dropped = [f"{name}/{line}" for name, plan in plans.items() for line in plan.left_out]
    return MergePlan(
        checkpoint,
        mixed,
        tuple(layout for plan in plans.values() for layout in plan.layouts),
        recipes,
        (*files, *inner_files),
        (*left_out, *dropped),
        tuple(f"{name}.{tensor}" for name, plan in plans.items() for tensor in plan.untied),
        {path: stamp for plan in plans.values() for path, stamp in plan.stamps.items()},
        {f"{n}.{tensor}": rows for n, p in plans.items() for tensor, rows in p.resized.items()},
        next((plan.new_head for plan in plans.values() if plan.new_head), None),
    )


def split_mix(
    mixed: Mix,
    pipeline: Checkpoint,
    layout: Layout | str | None = None,
    names: Names = None,
) -> dict[str, Mix]:
    """Splits a mix by the components of a pipeline.

    Args:
        mixed: The adapters.
        pipeline: A checkpoint with components.
        layout: As in `merge_checkpoint`.
        names: As in `merge_checkpoint`.

    Returns:
        ``{component: mix}``, whose sites are modules of the component.

    Raises:
        LayoutError: If sites name a component that is absent, or modules of none or of several
            components; all are listed.
    """
    modules = _Components(pipeline, layout, names)
    adapters: dict[str, list[Adapter]] = {}
    problems: list[str] = []
    for part in mixed.parts:
        bare, wrong = [], []
        sites: dict[str, tuple[str, str]] = {}
        for site in part.updates:
            owner = modules.named(site)
            if owner is None:
                bare.append(site)
            elif not owner[0]:
                wrong.append(f"{site}: no {split_part(site).part} with weights in safetensors")
            else:
                sites[site] = owner
        if bare:
            component, reason = modules.containing(part, bare)
            sites |= {site: (component, site) for site in bare if component}
            wrong += [f"{site}: {reason}" for site in bare if not component]
        problems += [f"{part.name}: {line}" for line in wrong]
        for component in dict.fromkeys(component for component, _ in sites.values()):
            updates = {
                sites[site][1]: update
                for site, update in part.updates.items()
                if site in sites and sites[site][0] == component
            }
            adapters.setdefault(component, []).append(replace(part, updates=updates))
    if problems:
        raise LayoutError(
            f"{pipeline.name}: sites that do not belong to exactly one component of the pipeline:"
            f"{listing(problems)}\nIts components with weights are "
            f"{', '.join(pipeline.components)}. Name the one for which an adapter was trained: "
            f"{option('part', next(iter(pipeline.components)), of='jaxmix.load(…, base=…')}."
        )
    return {component: Mix(tuple(parts)) for component, parts in adapters.items()}


@dataclass(frozen=True)
class _Components:
    """Finds the component of a site."""

    pipeline: Checkpoint
    layout: Layout | str | None
    names: Names

    def named(self, site: str) -> tuple[str, str] | None:
        """Returns the component that a site's name starts with, and the module in it.

        The component is "" if the pipeline lacks it; None if the name has no component.
        """
        first, _, rest = site.partition(".")
        if rest and first in self.pipeline.components:
            return first, rest
        part, module = split_part(site)
        if not part:
            return None
        components = [name for name in components_of(part) if name in self.pipeline.components]
        return (components[0], module) if components else ("", module)

    def containing(self, part: Adapter, sites: list[str]) -> tuple[str, str]:
        """Returns the component with modules of these names, or "" and the reason."""
        adapter = replace(part, updates={site: part.updates[site] for site in sites})
        counts = {
            name: sum(1 for _ in self._sites_in(adapter, component))
            for name, component in self.pipeline.components.items()
        }
        most = max(counts.values())
        matches = [name for name, count in counts.items() if count == most]
        if not most:
            return "", "no component has such a module"
        if len(matches) > 1:
            return "", f"{' and '.join(matches)} have such modules"
        return matches[0], ""

    def _sites_in(self, adapter: Adapter, component: Checkpoint) -> Iterator[str]:
        """Yields the sites of an adapter that are modules of a component, by its name map."""
        table, _ = resolve_layout(self.layout)
        tensors = component.tensors
        spellings = Spellings(tensors)
        try:
            mixed, table = with_stored_names(Mix((adapter,)), component, table, self.names)
            (renamed,) = mixed.parts
        except LayoutError:  # raised again when the merge into the component is planned
            renamed = adapter
        for site in renamed.updates:
            places = chain(*respelled(table, site, tensors, spellings).values())
            if any(place.leaf in tensors for place in places):
                yield site
