"""Measures as a picture: for each adapter maps of modules by layers, and below how pairs agree."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxmix.errors import AdapterError
from jaxmix.measures.measuring import Measures, OfPair, OfSite
from jaxmix.pictures import AS_IS, grid, heat_map, printable, pyplot, save_picture

__all__ = ["draw_measures"]

# Below the first number red, above the second blue: what has two directions has a middle in white.
_DIVERGING, _SEQUENTIAL = "RdBu", "YlGnBu"
# Maps of more layers than this have no room for numbers in their cells.
_MANY = 12


@dataclass(frozen=True)
class _Map:
    """What a column of maps, or one of the tables below them, shows.

    Args:
        title: What stands above.
        number: What is drawn of one site, or one pair.
        colours: The name of matplotlib's colour map.
        limits: From the lowest and the highest number to those of the colours.
        logarithmic: Whether colours go by the logarithm.
    """

    title: str
    number: Callable[[Any], float]
    colours: str
    limits: Callable[[float, float], tuple[float, float]]
    logarithmic: bool = False

    def scale(self, low: float, high: float) -> dict[str, Any]:
        """The colours' scale for numbers between two, as `heat_map` takes it."""
        from matplotlib.colors import LogNorm, Normalize

        least, most = self.limits(low, high)
        kind = LogNorm if self.logarithmic else Normalize
        return {"cmap": self.colours, "norm": kind(least, most if most > least else least + 1)}


_OF_SITES = (
    _Map("norm of the effect, ‖Δ‖", lambda one: one.norm, _SEQUENTIAL, lambda low, high: (0, high)),
    _Map("effective rank", lambda one: one.rank, _SEQUENTIAL, lambda low, high: (1, high), True),
    _Map(
        "share in the mix",
        lambda one: one.share,
        _DIVERGING,
        lambda low, high: (-max(-low, high), max(-low, high)),
    ),
)
_OF_PAIRS = (
    _Map("cosine", lambda one: one.cosine, _DIVERGING, lambda *_: (-1, 1)),
    _Map("equal signs (0.5: chance)", lambda one: one.signs, _DIVERGING, lambda *_: (0, 1)),
    _Map("overlap of outputs (0: chance)", lambda one: one.outputs, _DIVERGING, lambda *_: (-1, 1)),
    _Map("overlap of inputs (0: chance)", lambda one: one.inputs, _DIVERGING, lambda *_: (-1, 1)),
)


def draw_measures(measures: Measures, path: str | os.PathLike[str]) -> Path:
    """Draws measures: a row an adapter, with maps of norm, effective rank and share in the mix.

    Below stand, for several adapters, tables of their pairs, means over the sites that both change:
    cosine, equal signs, and overlap of what they write to and what they read.

    Args:
        measures: As `measure` gives them.
        path: The file to write: PNG, or by its name SVG or PDF.

    Returns:
        The file.

    Raises:
        AdapterError: If nothing was measured.
        UnsupportedError: If matplotlib is missing, or the file is of no format of a picture.
        CheckpointError: If the picture can't be written there.

    Example:
        >>> import tempfile
        >>> one = Measures({"lora": {"layers.0.q": OfSite(2.0, 1.5, 1.0)}}, {}, {"layers.0.q": 4.0})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     draw_measures(one, folder + "/lora.png").name
        'lora.png'
    """
    found = {name: sites for name, sites in measures.sites.items() if sites}
    if not found:
        raise AdapterError("draw_measures got measures of no site, expected those of an adapter.")
    plt = pyplot()
    # All maps have the same rows and columns, so that the eye can go from one to another.
    sites = dict.fromkeys(site for each in found.values() for site in each)
    rows, columns, _ = grid(dict.fromkeys(sites, 0.0))
    maps = _OF_SITES if len(found) > 1 else _OF_SITES[:2]
    names = list(found)
    pairs = len(names) > 1
    wide, tall = max(2.2, 0.3 * len(columns)), max(1.2, 0.24 * len(rows))
    label = 0.075 * max(map(len, rows)) + 0.6
    square = 0.4 * len(names) + 0.8
    size = (label + len(maps) * (wide + 0.35), len(names) * (tall + 0.3) + 1.1)
    size = (size[0], size[1] + square) if pairs else size
    figure = plt.figure(figsize=size, layout="constrained")
    parts = figure.subfigures(2, 1, height_ratios=[size[1] - square, square]) if pairs else [figure]
    every = parts[0].subplots(len(names), len(maps), squeeze=False, sharex=True, sharey=True)
    for x, what in enumerate(maps):
        _column(parts[0], every[:, x], what, found, list(sites))
    for axes, name in zip(every[:, 0], names, strict=True):
        axes.set_ylabel(printable(name), fontweight="bold", **AS_IS)
    for axes in every[-1]:
        axes.set_xlabel("layer")
    if pairs:
        every = parts[1].subplots(1, len(_OF_PAIRS), squeeze=False)
        for i, (axes, what) in enumerate(zip(every[0], _OF_PAIRS, strict=True)):
            _table(axes, what, names if i == 0 else [""] * len(names), names, measures.pairs)
    return save_picture(figure, path)


def _column(
    figure: Any,
    every: Any,
    what: _Map,
    found: Mapping[str, Mapping[str, OfSite]],
    sites: list[str],
) -> None:
    """One measure of all adapters, in the same colours."""
    known = [what.number(one) for each in found.values() for one in each.values()]
    scale = what.scale(min(known), max(known))
    image = None
    for axes, each in zip(every, found.values(), strict=True):
        values = {site: what.number(each[site]) if site in each else float("nan") for site in sites}
        rows, columns, numbers = grid(values)
        image = heat_map(axes, rows, columns, numbers, **scale)
        axes.set_facecolor("0.94")
        if len(columns) > _MANY:
            axes.set_xticks(range(0, len(columns), 4), columns[::4])
    every[0].set_title(what.title, fontsize="medium")
    figure.colorbar(image, ax=list(every), location="bottom", shrink=0.8, aspect=30)


def _table(
    axes: Any,
    what: _Map,
    shown: list[str],
    names: list[str],
    pairs: Mapping[tuple[str, str], Mapping[str, OfPair]],
) -> None:
    """One measure of all pairs of adapters, as numbers on colours."""
    means: dict[tuple[str, str], float] = {}
    for (a, b), each in pairs.items():
        known = [number for one in each.values() if (number := what.number(one)) is not None]
        if known:
            means[a, b] = means[b, a] = sum(known) / len(known)
    numbers = [[means.get((a, b), float("nan")) for b in names] for a in names]
    low, high = what.limits(0, 0)
    heat_map(axes, shown, names, numbers, **what.scale(0, 0))
    axes.set_facecolor("0.94")
    axes.set_title(what.title, fontsize="medium")
    for y, line in enumerate(numbers):
        for x, number in enumerate(line):
            if number == number:  # a pair without a site in common is NaN
                strong = abs(number - (low + high) / 2) > 0.3 * (high - low)
                colour = "white" if strong else "black"
                axes.text(x, y, f"{number:.2f}", ha="center", va="center", color=colour)
