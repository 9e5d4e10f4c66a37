"""The strengths of a mix as a picture: a map for each adapter, modules by layers."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from jaxmix.adapter import Mixable
from jaxmix.errors import AdapterError

__all__ = ["draw_strengths", "strengths_by_site"]

# What weakens an adapter is red, what strengthens it blue, what leaves it as it was white.
_COLOURS = "RdBu"
_LAYER = re.compile(r"(?:^|\.)(\d+)(?:\.|$)")


def strengths_by_site(mixed: Mixable) -> dict[str, dict[str, float]]:
    """The strength of each adapter at each of its sites.

    Args:
        mixed: the adapter or the mix; parts of one site that are called ``name@site``, as
            `jaxmix.fit` makes them, are one adapter again.

    Returns:
        ``{name: {site: strength}}``.

    Raises:
        TypeError: if a strength is traced, so that it has no value yet: by JAX.

    Example:
        >>> from jaxmix.adapter import Adapter
        >>> from jaxmix.families import Replace
        >>> two = Adapter({"x": Replace(), "y": Replace()}, 0.5, "norms")
        >>> strengths_by_site(two)
        {'norms': {'x': 0.5, 'y': 0.5}}

    Source: issue 5's «strength per site».
    """
    found: dict[str, dict[str, float]] = {}
    for part in mixed.parts:
        for site in part.sites:
            own = len(part.sites) == 1 and part.name.endswith(f"@{site}")
            name = part.name.removesuffix(f"@{site}") if own else part.name
            found.setdefault(name, {})[site] = float(part.strength)
    return found


def draw_strengths(mixed: Mixable, path: str | os.PathLike[str]) -> Path:
    """Draws a map for each adapter: its modules downwards, the layers to the right.

    Args:
        mixed: the adapter or the mix, as `jaxmix.fit` gives it with ``per="site"``.
        path: the PNG file to write.

    Returns:
        The file.

    Raises:
        AdapterError: if no adapter of it has a site.
        ImportError: if matplotlib is not there: install the extra ``plot``.

    Example:
        >>> import tempfile
        >>> from jaxmix.adapter import Adapter
        >>> from jaxmix.families import Replace
        >>> one = Adapter({"layers.0.norm": Replace(), "layers.1.norm": Replace()}, 0.7)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     draw_strengths(one, folder + "/strengths.png").name
        'strengths.png'

    Source: issue 5's «shown as a picture (strength per site)».
    """
    found = strengths_by_site(mixed)
    if not found:
        raise AdapterError(f"draw_strengths got {mixed!r}, expected an adapter with sites.")
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    grids = {name: _grid(strengths) for name, strengths in found.items()}
    wide = max(len(columns) for _, columns, _ in grids.values())
    tall = [len(rows) for rows, _, _ in grids.values()]
    figure, every = plt.subplots(
        len(grids), 1, figsize=(2.6 + 0.62 * wide, 0.33 * sum(tall) + 1.2 * len(grids)),
        height_ratios=tall, squeeze=False, layout="constrained",
    )  # fmt: skip
    # An adapter that is off has the deepest red; beyond that, as beyond twice, colours end.
    far = max(abs(s - 1) for each in found.values() for s in each.values())
    reach = min(far, 1.0) or 1.0
    image = None
    for axes, (name, (rows, columns, numbers)) in zip(every[:, 0], grids.items(), strict=True):
        image = axes.imshow(numbers, cmap=_COLOURS, vmin=1 - reach, vmax=1 + reach, aspect="auto")
        for y, line in enumerate(numbers):
            for x, strength in enumerate(line):
                if strength == strength:  # no site there is NaN
                    colour = "white" if abs(strength - 1) > 0.6 * reach else "black"
                    axes.text(
                        x, y, f"{strength:.2f}", ha="center", va="center", color=colour, size=8
                    )
        axes.set_xticks(range(len(columns)), columns)
        axes.set_yticks(range(len(rows)), rows)
        axes.tick_params(length=0)
        axes.set_title(name, loc="left", size=10, weight="bold")
        if any(columns):
            axes.set_xlabel("layer", size=9)
        for spine in axes.spines.values():
            spine.set_visible(False)
    assert image is not None
    figure.colorbar(
        image, ax=list(every[:, 0]), label="strength: 1 is as it was trained", shrink=0.6,
        aspect=30, extend="both" if far > 1 else "neither",
    )  # fmt: skip
    path = Path(path)
    beside = path.with_name(f".{path.name}.part")
    figure.savefig(beside, dpi=130, format="png", pil_kwargs={"optimize": True})
    plt.close(figure)
    beside.replace(path)
    return path


def _grid(strengths: Mapping[str, float]) -> tuple[list[str], list[str], list[list[float]]]:
    """Rows, columns and numbers: a row a module, a column a layer; NaN where there is no site."""
    places = {site: _place(site) for site in strengths}
    rows = list(dict.fromkeys(row for row, _ in places.values()))
    columns = sorted({column for _, column in places.values()})
    at = {place: strengths[site] for site, place in places.items()}
    numbers = [[at.get((row, column), float("nan")) for column in columns] for row in rows]
    return rows, ["" if column < 0 else str(column) for column in columns], numbers


def _place(site: str) -> tuple[str, int]:
    """A site's module and its layer: what follows the first number of its path, and that."""
    if not (found := _LAYER.search(site)):
        return site, -1
    return site[found.end() :] or site[: found.start()], int(found[1])
