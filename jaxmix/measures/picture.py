"""Draws measures: maps of modules by layers for each adapter, and tables of pairs."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxmix.errors import AdapterError
from jaxmix.measures.measuring import Measures, PairMeasures, SiteMeasures
from jaxmix.pictures import AS_IS, grid, heat_map, new_figure, printable, save_picture

__all__ = ["draw_measures"]

# Matplotlib's colour maps: a diverging one (red, white, blue) and a sequential one.
_DIVERGING, _SEQUENTIAL = "RdBu", "YlGnBu"
# Maps with more layers than this label only every fourth one.
_MANY = 12


@dataclass(frozen=True)
class _Map:
    """The specification of a column of maps, or of one of the tables below them.

    Args:
        title: The title.
        number: Returns the number to draw for a site or a pair.
        colours: The name of matplotlib's colour map.
        limits: Returns the limits of the colours from the lowest and the highest number.
        logarithmic: Whether the colour scale is logarithmic.
    """

    title: str
    number: Callable[[Any], float]
    colours: str
    limits: Callable[[float, float], tuple[float, float]]
    logarithmic: bool = False

    def scale(self, low: float, high: float) -> dict[str, Any]:
        """Returns the colour scale for a range of numbers, as options of `heat_map`."""
        from matplotlib.colors import LogNorm, Normalize

        least, most = self.limits(low, high)
        norm = LogNorm if self.logarithmic else Normalize
        return {"cmap": self.colours, "norm": norm(least, most if most > least else least + 1)}


_SITE_MAPS = (
    _Map("norm of the effect, ‖Δ‖", lambda x: x.norm, _SEQUENTIAL, lambda low, high: (0, high)),
    _Map("effective rank", lambda x: x.rank, _SEQUENTIAL, lambda low, high: (1, high), True),
    _Map(
        "share in the mix",
        lambda x: x.share,
        _DIVERGING,
        lambda low, high: (-max(-low, high), max(-low, high)),
    ),
)
_PAIR_TABLES = (
    _Map("cosine", lambda x: x.cosine, _DIVERGING, lambda *_: (-1, 1)),
    _Map("equal signs (0.5: chance)", lambda x: x.signs, _DIVERGING, lambda *_: (0, 1)),
    _Map("overlap of outputs (0: chance)", lambda x: x.outputs, _DIVERGING, lambda *_: (-1, 1)),
    _Map("overlap of inputs (0: chance)", lambda x: x.inputs, _DIVERGING, lambda *_: (-1, 1)),
)


def draw_measures(measures: Measures, path: str | os.PathLike[str]) -> Path:
    """Draws measures: one row per adapter, with maps of norm, effective rank and share in the mix.

    For several adapters, tables below show their pairs, averaged over the sites that both change:
    cosine, equal signs, and the overlap of outputs and of inputs.

    Args:
        measures: The result of `measure`.
        path: The file to write: PNG, or SVG or PDF according to its suffix.

    Returns:
        The path of the file.

    Raises:
        AdapterError: If there are no measures.
        UnsupportedError: If matplotlib is missing, or the suffix is not that of an image format.
        CheckpointError: If the file can't be written.

    Example:
        >>> import tempfile
        >>> sites = {"lora": {"layers.0.q": SiteMeasures(2.0, 1.5, 1.0)}}
        >>> measures = Measures(sites, {}, {"layers.0.q": 4.0})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     draw_measures(measures, folder + "/lora.png").name
        'lora.png'
    """
    by_adapter = {name: sites for name, sites in measures.sites.items() if sites}
    if not by_adapter:
        raise AdapterError("draw_measures got no measures, expected those of at least one site.")
    # All maps have the same rows and columns, which makes them easy to compare.
    sites = dict.fromkeys(site for by_site in by_adapter.values() for site in by_site)
    rows, columns, _ = grid(dict.fromkeys(sites, 0.0))
    maps = _SITE_MAPS if len(by_adapter) > 1 else _SITE_MAPS[:2]
    names = list(by_adapter)
    pairs = len(names) > 1
    wide, tall = max(2.2, 0.3 * len(columns)), max(1.2, 0.24 * len(rows))
    label = 0.075 * max(map(len, rows)) + 0.6
    square = 0.4 * len(names) + 0.8
    size = (label + len(maps) * (wide + 0.35), len(names) * (tall + 0.3) + 1.1)
    size = (size[0], size[1] + square) if pairs else size
    figure = new_figure(*size)
    parts = figure.subfigures(2, 1, height_ratios=[size[1] - square, square]) if pairs else [figure]
    panels = parts[0].subplots(len(names), len(maps), squeeze=False, sharex=True, sharey=True)
    for x, spec in enumerate(maps):
        _column(parts[0], panels[:, x], spec, by_adapter, list(sites))
    for axes, name in zip(panels[:, 0], names, strict=True):
        axes.set_ylabel(printable(name), fontweight="bold", **AS_IS)
    for axes in panels[-1]:
        axes.set_xlabel("layer")
    if pairs:
        panels = parts[1].subplots(1, len(_PAIR_TABLES), squeeze=False)
        for i, (axes, spec) in enumerate(zip(panels[0], _PAIR_TABLES, strict=True)):
            _table(axes, spec, names if i == 0 else [""] * len(names), names, measures.pairs)
    return save_picture(figure, path)


def _column(
    figure: Any,
    panels: Any,
    spec: _Map,
    by_adapter: Mapping[str, Mapping[str, SiteMeasures]],
    sites: list[str],
) -> None:
    """Draws one measure of all adapters, with the same colours."""
    known = [
        spec.number(measures) for by_site in by_adapter.values() for measures in by_site.values()
    ]
    scale = spec.scale(min(known), max(known))
    image = None
    for axes, by_site in zip(panels, by_adapter.values(), strict=True):
        values = {
            site: spec.number(by_site[site]) if site in by_site else float("nan") for site in sites
        }
        rows, columns, numbers = grid(values)
        image = heat_map(axes, rows, columns, numbers, **scale)
        axes.set_facecolor("0.94")
        if len(columns) > _MANY:
            axes.set_xticks(range(0, len(columns), 4), columns[::4])
    panels[0].set_title(spec.title, fontsize="medium")
    figure.colorbar(image, ax=list(panels), location="bottom", shrink=0.8, aspect=30)


def _table(
    axes: Any,
    spec: _Map,
    shown: list[str],
    names: list[str],
    pairs: Mapping[tuple[str, str], Mapping[str, PairMeasures]],
) -> None:
    """Draws one measure of all pairs of adapters, as numbers on colours."""
    means: dict[tuple[str, str], float] = {}
    for (a, b), by_site in pairs.items():
        known = [number for pair in by_site.values() if (number := spec.number(pair)) is not None]
        if known:
            means[a, b] = means[b, a] = sum(known) / len(known)
    numbers = [[means.get((a, b), float("nan")) for b in names] for a in names]
    low, high = spec.limits(0, 0)
    heat_map(axes, shown, names, numbers, **spec.scale(0, 0))
    axes.set_facecolor("0.94")
    axes.set_title(spec.title, fontsize="medium")
    for y, line in enumerate(numbers):
        for x, number in enumerate(line):
            if number == number:  # NaN means that the pair shares no site
                strong = abs(number - (low + high) / 2) > 0.3 * (high - low)
                colour = "white" if strong else "black"
                axes.text(x, y, f"{number:.2f}", ha="center", va="center", color=colour)
