"""A merge that was looked at: what is to be written, and how."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from jaxmix.adapter import Adapter, Mixable
from jaxmix.converters.checkpoints.conv1d import conv1d_pattern
from jaxmix.converters.checkpoints.huggingface import Checkpoint, read_checkpoint
from jaxmix.converters.checkpoints.side_files import side_files
from jaxmix.converters.merging.grown import Grown
from jaxmix.converters.merging.new_head import NewHead, with_new_head
from jaxmix.converters.merging.planning import plan, table_of
from jaxmix.converters.merging.quantized import dequantized, is_packed, stale
from jaxmix.converters.merging.recipe import Recipe
from jaxmix.converters.merging.resizing import resized
from jaxmix.converters.merging.stamps import Stamp, stamps_of
from jaxmix.converters.merging.untying import untied
from jaxmix.converters.names import with_stored_names
from jaxmix.mixing import Mix, mix
from jaxmix.placement.layout import Layout

__all__ = ["Adapters", "Work", "look_at"]

Adapters = Adapter | Mix | Iterable[Adapter | Mix]


@dataclass(frozen=True)
class Work:
    """A merge that was looked at, and can be done.

    Args:
        checkpoint: what is to be written.
        mixed: the adapters.
        table: the layout.
        recipes: how the tensors are made that are not copied.
        files: the side files to copy.
        left_out: those that are not copied, with the reason.
        head: the head that is untied, if one is.
        stamps: of the base's files, from when their headers were read.
        resized: the tensors that get more or fewer rows, with the rows before and after.
        new_head: the class whose checkpoint the base becomes by a head that the adapters bring.
    """

    checkpoint: Checkpoint
    mixed: Mix
    table: Layout
    recipes: Mapping[str, Recipe]
    files: tuple[str, ...]
    left_out: tuple[str, ...]
    head: str | None
    stamps: Mapping[Path, Stamp]
    resized: Mapping[str, tuple[int, int]]
    new_head: str | None

    @property
    def changed(self) -> tuple[str, ...]:
        """The tensors that adapters change."""
        return tuple(name for name, recipe in self.recipes.items() if recipe.shares)


def look_at(
    base: str | os.PathLike[str],
    adapters: Adapters,
    layout: Layout | str | None,
    *,
    untie: bool,
    dequantize: bool,
    resize: bool,
    new_head: bool | str,
) -> Work:
    """All that can be told before anything is written.

    Args:
        base: the base's folder or file.
        adapters: as `merge_checkpoint` takes them.
        layout: as there.
        untie: as there.
        dequantize: as there.
        resize: as there.
        new_head: as there.

    Returns:
        The merge, which can be done.

    Raises:
        JaxmixError: if it can't.
    """
    mixed = mix(*((adapters,) if isinstance(adapters, Mixable) else adapters))
    checkpoint = read_checkpoint(base)
    stamps = stamps_of(checkpoint)
    files, left_out = side_files(checkpoint)
    table, is_own = table_of(layout)
    head, made = None, NewHead()
    # First of all: a packed head would look like a tied one, or like none.
    checkpoint = dequantized(checkpoint) if dequantize else checkpoint
    old = stale(checkpoint, files)
    mixed = with_stored_names(mixed, checkpoint) if is_own else mixed
    if table.conv1d is None:
        table = replace(table, conv1d=conv1d_pattern(checkpoint))
    if is_own:
        checkpoint, made = with_new_head(checkpoint, mixed, allowed=new_head)
        checkpoint, mixed, head = untied(checkpoint, mixed, allowed=untie)
    checkpoint, rows = resized(
        checkpoint, mixed, table, allowed=resize, labels=bool(new_head), untied=head
    )
    recipes = plan(checkpoint, mixed, table)
    packed = {
        n: Recipe(t, ())
        for n, t in checkpoint.tensors.items()
        if is_packed(t) or isinstance(t, Grown)
    }
    all_ = {**packed, **recipes}
    ordered = {name: all_[name] for name in checkpoint.tensors if name in all_}
    return Work(
        checkpoint,
        mixed,
        table,
        ordered,
        tuple(name for name in files if name not in old),
        (
            *left_out,
            *(f"{name}: it tells how the base was quantized" for name in old),
            *made.dropped,
        ),
        head,
        stamps,
        rows,
        made.name,
    )
