"""The plan of a merge: what is to be written, and how, after everything was checked."""

import os
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from jaxmix.adapter import Adapter, Mixable, chains_by_site
from jaxmix.converters.checkpoints.conv1d import conv1d_pattern
from jaxmix.converters.checkpoints.huggingface import Checkpoint, read_checkpoint
from jaxmix.converters.checkpoints.side_files import side_files
from jaxmix.converters.merging.new_head import NewHead, with_new_head
from jaxmix.converters.merging.planning import plan_recipes, resolve_layout
from jaxmix.converters.merging.quantized import dequantized, is_packed, stale_files
from jaxmix.converters.merging.recipe import Recipe
from jaxmix.converters.merging.resized_tensor import ResizedTensor
from jaxmix.converters.merging.resizing import resized
from jaxmix.converters.merging.stamps import Stamp, stamps_of
from jaxmix.converters.merging.untying import untied
from jaxmix.converters.names import modules_of, with_stored_names
from jaxmix.mixing import Mix, mix
from jaxmix.placement.layout import Layout
from jaxmix.placement.naming import Names, listing_tried_names

__all__ = ["Adapters", "AllowedChanges", "MergePlan", "plan_merge"]

Adapters = Adapter | Mix | Iterable[Adapter | Mix]


@dataclass(frozen=True, kw_only=True)
class AllowedChanges:
    """Changes to the base, beyond its weights' values, that the caller allows.

    Args:
        untie: As in `merge_checkpoint`.
        dequantize: As in `merge_checkpoint`.
        resize: As in `merge_checkpoint`.
        new_head: As in `merge_checkpoint`.
    """

    untie: bool
    dequantize: bool
    resize: bool
    new_head: bool | str | None


@dataclass(frozen=True)
class MergePlan:
    """A merge that was checked and can be carried out.

    Args:
        checkpoint: The checkpoint to write.
        mixed: The adapters.
        layout: Where their sites are among the tensors; of a pipeline, in each component.
        recipes: How to compute the tensors that are not copied.
        side_files: The side files to copy.
        left_out: The side files that are not copied, each with the reason.
        untied: The tensors that are new or no longer tied, the head first.
        stamps: Stamps of the base's files, taken when their headers were read.
        resized: The tensors that gain or lose rows: the rows before and after.
        new_head: The class of the output, if the adapters have a head that the base lacks.
    """

    checkpoint: Checkpoint
    mixed: Mix
    layout: Layout | tuple[Layout, ...]
    recipes: Mapping[str, Recipe]
    side_files: tuple[str, ...]
    left_out: tuple[str, ...]
    untied: tuple[str, ...]
    stamps: Mapping[Path, Stamp]
    resized: Mapping[str, tuple[int, int]]
    new_head: str | None

    @property
    def layouts(self) -> tuple[Layout, ...]:
        """The layout, or that of each component."""
        return self.layout if isinstance(self.layout, tuple) else (self.layout,)

    @property
    def changed(self) -> tuple[str, ...]:
        """The tensors that adapters change."""
        return tuple(name for name, recipe in self.recipes.items() if recipe.shares)


def plan_merge(
    base: str | os.PathLike[str] | Checkpoint,
    adapters: Adapters,
    layout: Layout | str | None,
    changes: AllowedChanges,
    names: Names = None,
    variant: str | None = None,
) -> MergePlan:
    """Checks everything that can be checked before anything is written.

    Args:
        base: As in `merge_checkpoint`, or a checkpoint that is read already.
        adapters: As in `merge_checkpoint`.
        layout: As in `merge_checkpoint`.
        changes: The changes to the base that are allowed.
        names: As in `merge_checkpoint`.
        variant: As in `merge_checkpoint`.

    Returns:
        A merge that can be carried out.

    Raises:
        JaxmixError: If the merge is impossible.
    """
    mixed = mix(*((adapters,) if isinstance(adapters, Mixable) else adapters))
    sites = tuple(chains_by_site(mixed.parts))
    checkpoint = base if isinstance(base, Checkpoint) else read_checkpoint(base, variant)
    if checkpoint.components:
        from jaxmix.converters.merging.components import plan_pipeline  # it uses this function

        return plan_pipeline(checkpoint, mixed, layout, changes, names)
    stamps = stamps_of(checkpoint)
    files, left_out = side_files(checkpoint)
    table, finds_ties = resolve_layout(layout)
    untied_names, added_head = (), NewHead()
    # Dequantize first: a packed head would look like a tied or a missing one.
    checkpoint = dequantized(checkpoint) if changes.dequantize else checkpoint
    stale = stale_files(checkpoint, files)
    if finds_ties:
        mixed, table = with_stored_names(mixed, checkpoint, table, names)
    if table.conv1d is None:
        table = replace(table, conv1d=conv1d_pattern(checkpoint))
    if finds_ties:
        checkpoint, added_head = with_new_head(checkpoint, mixed, allowed=changes.new_head)
        if added_head.name:
            # The class with the head may name the tensors of its body differently.
            mixed, table = with_stored_names(mixed, checkpoint, table, names)
        checkpoint, mixed, untied_names = untied(
            checkpoint, mixed, allowed=changes.untie, sites=sites
        )
    checkpoint, rows = resized(
        checkpoint,
        mixed,
        table,
        allowed=changes.resize,
        labels=bool(changes.new_head),
        untied=untied_names,
    )
    with listing_tried_names(modules_of(checkpoint, names)) if finds_ties else nullcontext():
        recipes = plan_recipes(checkpoint, mixed, table)
    rewritten = {
        name: Recipe(tensor, ())
        for name, tensor in checkpoint.tensors.items()
        if is_packed(tensor) or isinstance(tensor, ResizedTensor)
    }
    all_recipes = {**rewritten, **recipes}
    return MergePlan(
        checkpoint,
        mixed,
        table,
        {name: all_recipes[name] for name in checkpoint.tensors if name in all_recipes},
        tuple(name for name in files if name not in stale),
        (
            *left_out,
            *(f"{name}: it describes how the base was quantized" for name in stale),
            *added_head.left_out,
        ),
        untied_names,
        stamps,
        rows,
        added_head.name,
    )
