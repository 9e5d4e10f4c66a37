"""Summarizes adapters' updates, as a table and as data for JSON."""

import re
import textwrap
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import jax
from rich.cells import cell_len

from jaxmix.adapter import Adapter
from jaxmix.converters.files.terminal import printable
from jaxmix.families import Together, Update

__all__ = ["adapter_data", "adapter_lines"]

_TITLES = ("adapter", "kind", "size", "scale", "sites", "parameters")
# The first columns hold words, the others numbers.
_WORDS = 3


@dataclass(frozen=True)
class _Group:
    """The sites of an adapter whose updates have the same kind, size and dtype."""

    kind: str
    size: str
    dtype: str
    scale: tuple[float, ...]
    numbers: int
    sites: tuple[str, ...]


def adapter_data(adapter: Adapter) -> dict[str, Any]:
    """Summarizes an adapter as data that JSON can hold.

    Args:
        adapter: The adapter.

    Returns:
        Its name, strength and source, and for each kind of update its size, dtype, scale
        (alpha/rank for most kinds; the smallest and the largest if they differ), count of numbers
        and sites.
    """
    kinds = [asdict(group) for group in _groups(adapter)]
    strength = float(adapter.strength)
    return {"name": adapter.name, "strength": strength, "source": adapter.source, "kinds": kinds}


def adapter_lines(adapters: Iterable[Adapter], width: int) -> list[str]:
    """Summarizes adapters as a table: a row for each kind of update, and its modules below the row.

    Args:
        adapters: The adapters.
        width: The width of a line, at which lists of modules are broken.

    Returns:
        Lines of text, the titles first.
    """
    rows: list[tuple[tuple[str, ...], list[str]]] = [(_TITLES, [])]
    for adapter in adapters:
        label = f"{printable(adapter.name)} × {float(adapter.strength):g}"
        below = []
        if adapter.source not in ("", adapter.name):
            below = [f"  {printable(adapter.source)}"]
        for group in _groups(adapter):
            scale = "–".join(f"{number:.4g}" for number in group.scale)
            counts = (scale, str(len(group.sites)), f"{group.numbers:,} {group.dtype}".rstrip())
            below += [line for text in _modules(group.sites) for line in _wrapped(text, width)]
            rows.append(((label, group.kind, group.size, *counts), below))
            label, below = "", []
    widths = [max(cell_len(row[i]) for row, _ in rows) for i in range(len(_TITLES))]
    return [line for row, below in rows for line in (_row(row, widths), *below)]


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    """Aligns the cells of a row: words on the left, numbers on the right."""
    gaps = [" " * (width - cell_len(cell)) for cell, width in zip(cells, widths, strict=True)]
    pairs = enumerate(zip(cells, gaps, strict=True))
    return "  ".join(cell + gap if i < _WORDS else gap + cell for i, (cell, gap) in pairs).rstrip()


def _wrapped(text: str, width: int) -> list[str]:
    """Breaks a list of modules into indented lines."""
    return textwrap.wrap(
        text,
        width,
        initial_indent="    ",
        subsequent_indent="      ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _groups(adapter: Adapter) -> list[_Group]:
    """Groups an adapter's updates by kind, size and dtype."""
    sites: dict[tuple[str, str, str], list[str]] = {}
    scales: dict[tuple[str, str, str], set[float]] = {}
    numbers: Counter[tuple[str, str, str]] = Counter()
    for site, update in adapter.updates.items():
        for part in update.parts if isinstance(update, Together) else (update,):
            arrays = _arrays(part)
            widest = max(arrays, key=lambda array: array.size, default=None)
            key = (part.family, part.size(), "" if widest is None else str(widest.dtype))
            sites.setdefault(key, []).append(site)
            numbers[key] += sum(array.size for array in arrays)
            if (scale := getattr(part, "scale", None)) is not None:
                scales.setdefault(key, set()).add(float(scale))
    return [
        _Group(*key, _ends(scales.get(key, ())), numbers[key], tuple(names))
        for key, names in sites.items()
    ]


def _ends(numbers: Collection[float]) -> tuple[float, ...]:
    """Returns the smallest and the largest number, or one number if they are equal."""
    return tuple(sorted({min(numbers), max(numbers)})) if numbers else ()


def _arrays(update: Update) -> list[Any]:
    """Returns an update's factors, without its scale."""
    return [leaf for leaf in jax.tree.leaves(update) if getattr(leaf, "ndim", 0)]


def _modules(sites: Sequence[str]) -> list[str]:
    """Lists sites with a line for each parent, combining those that differ only in numbers."""
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
