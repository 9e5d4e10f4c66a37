"""A merge that was looked at: what is to be written, and how."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from jaxmix.adapter import Adapter, Mixable
from jaxmix.converters.conv1d import conv1d_pattern
from jaxmix.converters.huggingface import Checkpoint, read_checkpoint, side_files
from jaxmix.converters.merging.planning import plan, table_of
from jaxmix.converters.merging.quantized import dequantized, is_packed
from jaxmix.converters.merging.recipe import Recipe
from jaxmix.converters.merging.untying import untied
from jaxmix.layout import Layout
from jaxmix.mix import Mix, mix

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
    """

    checkpoint: Checkpoint
    mixed: Mix
    table: Layout
    recipes: Mapping[str, Recipe]
    files: tuple[str, ...]
    left_out: tuple[str, ...]
    head: str | None

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
) -> Work:
    """All that can be told before anything is written.

    Args:
        base: the base's folder or file.
        adapters: as `merge_checkpoint` takes them.
        layout: as there.
        untie: as there.
        dequantize: as there.

    Returns:
        The merge, which can be done.

    Raises:
        JaxmixError: if it can't.
    """
    mixed = mix(*((adapters,) if isinstance(adapters, Mixable) else adapters))
    checkpoint = read_checkpoint(base)
    table, is_own = table_of(layout)
    head = None
    if is_own:
        checkpoint, head = untied(checkpoint, mixed, allowed=untie)
    if table.conv1d is None:
        table = replace(table, conv1d=conv1d_pattern(checkpoint))
    checkpoint = dequantized(checkpoint) if dequantize else checkpoint
    recipes = plan(checkpoint, mixed, table)
    packed = {n: Recipe(t, ()) for n, t in checkpoint.tensors.items() if is_packed(t)}
    files, left_out = side_files(checkpoint)
    all_ = {**packed, **recipes}
    ordered = {name: all_[name] for name in checkpoint.tensors if name in all_}
    return Work(checkpoint, mixed, table, ordered, tuple(files), tuple(left_out), head)
