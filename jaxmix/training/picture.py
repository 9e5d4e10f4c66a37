"""Draws the strengths of a mix: one map of modules by layers for each adapter."""

import os
from pathlib import Path

from jaxmix.adapter import Mixable
from jaxmix.errors import AdapterError
from jaxmix.pictures import AS_IS, grid, heat_map, new_figure, printable, save_picture

__all__ = ["draw_strengths", "strengths_by_site"]

# Strengths below 1 are red, above 1 blue, and 1 is white.
_COLOURS = "RdBu"


def strengths_by_site(mixed: Mixable) -> dict[str, dict[str, float]]:
    """Returns the strength of each adapter at each of its sites.

    Args:
        mixed: An adapter or a mix. Parts with one site that are named ``name@site``, as
            `jaxmix.fit` makes them, count as one adapter.

    Returns:
        ``{name: {site: strength}}``.

    Raises:
        TypeError: Raised by JAX if a strength is traced and has no value yet.

    Example:
        >>> from jaxmix.adapter import Adapter
        >>> from jaxmix.families import Replace
        >>> two = Adapter({"x": Replace(), "y": Replace()}, 0.5, "norms")
        >>> strengths_by_site(two)
        {'norms': {'x': 0.5, 'y': 0.5}}

    Source: ``docs/training.md``, "Strengths by gradient".
    """
    found: dict[str, dict[str, float]] = {}
    for part in mixed.parts:
        for site in part.sites:
            is_split = len(part.sites) == 1 and part.name.endswith(f"@{site}")
            name = part.name.removesuffix(f"@{site}") if is_split else part.name
            found.setdefault(name, {})[site] = float(part.strength)
    return found


def draw_strengths(mixed: Mixable, path: str | os.PathLike[str]) -> Path:
    """Draws a map for each adapter, with modules from top to bottom and layers from left to right.

    Args:
        mixed: An adapter or a mix, usually the result of `jaxmix.fit` with ``per="site"``.
        path: The file to write: PNG, or SVG or PDF according to its suffix.

    Returns:
        The path of the file.

    Raises:
        AdapterError: If no adapter has a site.
        UnsupportedError: If matplotlib is missing, or the suffix is not that of an image format.
        CheckpointError: If the file can't be written.

    Example:
        >>> import tempfile
        >>> from jaxmix.adapter import Adapter
        >>> from jaxmix.families import Replace
        >>> one = Adapter({"layers.0.norm": Replace(), "layers.1.norm": Replace()}, 0.7)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     draw_strengths(one, folder + "/strengths.png").name
        'strengths.png'

    Source: ``docs/training.md``, "Strengths by gradient".
    """
    by_adapter = strengths_by_site(mixed)
    if not by_adapter:
        raise AdapterError(f"draw_strengths got {mixed!r}, expected an adapter with sites.")
    grids = {name: grid(strengths) for name, strengths in by_adapter.items()}
    wide = max(len(columns) for _, columns, _ in grids.values())
    tall = [len(rows) for rows, _, _ in grids.values()]
    figure = new_figure(2.6 + 0.62 * wide, 0.33 * sum(tall) + 1.2 * len(grids))
    panels = figure.subplots(len(grids), 1, height_ratios=tall, squeeze=False)
    # The colour scale spans at most 0 (deepest red) to 2 (deepest blue).
    far = max(abs(s - 1) for by_site in by_adapter.values() for s in by_site.values())
    reach = min(far, 1.0) or 1.0
    image = None
    for axes, (name, (rows, columns, numbers)) in zip(panels[:, 0], grids.items(), strict=True):
        limits = {"vmin": 1 - reach, "vmax": 1 + reach}
        image = heat_map(axes, rows, columns, numbers, cmap=_COLOURS, **limits)
        for y, line in enumerate(numbers):
            for x, strength in enumerate(line):
                if strength == strength:  # NaN means that there is no site
                    colour = "white" if abs(strength - 1) > 0.6 * reach else "black"
                    axes.text(
                        x, y, f"{strength:.2f}", ha="center", va="center", color=colour, size=8
                    )
        axes.set_title(printable(name), loc="left", size=10, weight="bold", **AS_IS)
        if any(columns):
            axes.set_xlabel("layer", size=9)
    assert image is not None
    figure.colorbar(
        image, ax=list(panels[:, 0]), label="strength (1: as trained)", shrink=0.6,
        aspect=30, extend="both" if far > 1 else "neither",
    )  # fmt: skip
    return save_picture(figure, path)
