"""What adapters are made of, as a table for people and as plain data for machines."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import jax
from rich.table import Table

from jaxmix.adapter import Adapter
from jaxmix.converters.files.terminal import escape, printable
from jaxmix.families import Together, Update

__all__ = ["adapter_data", "adapter_table"]


@dataclass(frozen=True)
class _Kind:
    """The sites of an adapter whose updates are alike."""

    kind: str
    size: str
    dtype: str
    scale: tuple[float, ...]
    numbers: int
    sites: tuple[str, ...]


def adapter_data(adapter: Adapter) -> dict[str, Any]:
    """An adapter as data that JSON can hold.

    Args:
        adapter: the adapter.

    Returns:
        Its name, strength and source, and for each kind of update its size, dtype, scale (alpha by
        rank, in most kinds; the smallest and the largest where they differ), count of numbers and
        sites.
    """
    kinds = [asdict(kind) for kind in _kinds(adapter)]
    told = {"name": adapter.name, "strength": float(adapter.strength), "source": adapter.source}
    return {**told, "kinds": kinds}


def adapter_table(adapters: Iterable[Adapter]) -> Table:
    """Adapters as a table: a line for each adapter and kind of update.

    Args:
        adapters: the adapters.

    Returns:
        A table for rich.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("adapter", "kind", "size"):
        table.add_column(title, overflow="fold")
    for title in ("scale", "sites", "parameters"):
        table.add_column(title, justify="right")
    table.add_column("modules", overflow="fold", ratio=1)
    for adapter in adapters:
        who = f"{printable(adapter.name)} × {float(adapter.strength):g}"
        who += (
            f"\n  {printable(adapter.source)}" if adapter.source not in ("", adapter.name) else ""
        )
        for kind in _kinds(adapter):
            scale = "–".join(f"{number:.4g}" for number in kind.scale)
            counts = (scale, str(len(kind.sites)), f"{kind.numbers:,} {kind.dtype}".rstrip())
            cells = (who, kind.kind, kind.size, *counts, "\n".join(_modules(kind.sites)))
            table.add_row(*("\n".join(map(escape, cell.split("\n"))) for cell in cells))
            who = ""
    return table


def _kinds(adapter: Adapter) -> list[_Kind]:
    """What the adapter is made of: one for each kind, size and dtype."""
    sites: dict[tuple[str, str, str], list[str]] = {}
    scales: dict[tuple[str, str, str], set[float]] = {}
    numbers: Counter[tuple[str, str, str]] = Counter()
    for site, update in adapter.updates.items():
        for one in update.parts if isinstance(update, Together) else (update,):
            arrays = _arrays(one)
            widest = max(arrays, key=lambda array: array.size, default=None)
            key = (one.family, one.size(), "" if widest is None else str(widest.dtype))
            sites.setdefault(key, []).append(site)
            numbers[key] += sum(array.size for array in arrays)
            if (scale := getattr(one, "scale", None)) is not None:
                scales.setdefault(key, set()).add(float(scale))
    return [
        _Kind(*key, _ends(scales.get(key, ())), numbers[key], tuple(found))
        for key, found in sites.items()
    ]


def _ends(numbers: Collection[float]) -> tuple[float, ...]:
    """The smallest and the largest; one number where they are one."""
    return tuple(sorted({min(numbers), max(numbers)})) if numbers else ()


def _arrays(update: Update) -> list[Any]:
    """An update's factors, its scale left aside."""
    return [leaf for leaf in jax.tree.leaves(update) if getattr(leaf, "ndim", 0)]


def _modules(sites: Sequence[str]) -> list[str]:
    """Sites for people, a line a parent: those that differ in numbers only are one."""
    children: dict[str, list[str]] = {}
    for site in dict.fromkeys(
        re.sub(r"(?<![^.])\d+(?![^.])", "*", site) for site in map(printable, sites)
    ):
        parent, _, child = site.rpartition(".")
        children.setdefault(parent, []).append(child)
    return [
        ", ".join(names)
        if not parent
        else f"{parent}{': ' if names[1:] else '.'}{', '.join(names)}"
        for parent, names in children.items()
    ]
