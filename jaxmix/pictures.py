"""What pictures of adapters have in common: maps of modules by layers, and files that are whole."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxmix.errors import CheckpointError, UnsupportedError
from jaxmix.untrusted.files import output_path

__all__ = [
    "AS_IS",
    "FORMATS",
    "checked_picture",
    "grid",
    "heat_map",
    "printable",
    "pyplot",
    "save_picture",
]

# By the end of a file's name; without one it is the first.
FORMATS = ("png", "svg", "pdf")

# Names are no formulas, whatever dollars are in them.
AS_IS: Mapping[str, Any] = {"parse_math": False}

_LAYER = re.compile(r"(?:^|\.)(\d+)(?:\.|$)")


def pyplot() -> Any:
    """The pyplot of matplotlib, drawing into files and not onto a screen.

    Raises:
        UnsupportedError: if matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise UnsupportedError(
            "a picture needs matplotlib, which is not installed here. Install it: "
            "pip install 'jaxmix-peft[plot]'."
        ) from error
    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    return plt


def printable(name: str) -> str:
    r"""A name as a picture can hold it: what no font has a glyph for is written as its escape.

    Example:
        >>> print(printable("a\tb$"))
        a\tb$
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)


def grid(values: Mapping[str, float]) -> tuple[list[str], list[str], list[list[float]]]:
    """Numbers of sites as a map: a row a module, a column a layer.

    Args:
        values: ``{site: number}``.

    Returns:
        The rows' names, the columns' names, and the numbers, NaN where there is no site.

    Example:
        >>> grid({"layers.0.q": 1.0, "layers.2.q": 2.0, "norm": 3.0})
        (['q', 'norm'], ['', '0', '2'], [[nan, 1.0, 2.0], [3.0, nan, nan]])
    """
    places = {site: _place(site) for site in values}
    rows = list(dict.fromkeys(row for row, _ in places.values()))
    columns = sorted({column for _, column in places.values()})
    at = {place: values[site] for site, place in places.items()}
    numbers = [[at.get((row, column), float("nan")) for column in columns] for row in rows]
    return rows, ["" if column < 0 else str(column) for column in columns], numbers


def _place(site: str) -> tuple[str, int]:
    """A site's module and its layer: what follows the first number of its path, and that."""
    if not (found := _LAYER.search(site)):
        return site, -1
    return site[found.end() :] or site[: found.start()], int(found[1])


def heat_map(
    axes: Any,
    rows: Sequence[str],
    columns: Sequence[str],
    numbers: Sequence[Sequence[float]],
    **options: Any,
) -> Any:
    """Draws a map without a frame.

    Args:
        axes: matplotlib's axes.
        rows: the rows' names.
        columns: the columns' names.
        numbers: a list a row; NaN stays white.
        **options: colours and their limits, for matplotlib's ``imshow``.

    Returns:
        The image, for a colour bar.
    """
    image = axes.imshow(numbers, aspect="auto", **options)
    axes.set_xticks(range(len(columns)), map(printable, columns), **AS_IS)
    axes.set_yticks(range(len(rows)), map(printable, rows), **AS_IS)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return image


def checked_picture(path: str | os.PathLike[str]) -> Path:
    """The file of a picture, as far as can be told before it is drawn.

    Args:
        path: the file to write.

    Returns:
        The same.

    Raises:
        UnsupportedError: if matplotlib is missing, or the name ends as no picture's here.
    """
    place = output_path(path, "picture")
    if place.suffix.lower()[1:] not in ("", *FORMATS):
        raise UnsupportedError(
            f"the picture {path} is of a format that is not written here, expected a name that "
            f"ends in {', '.join(f'.{one}' for one in FORMATS)}."
        )
    pyplot()
    return place


def save_picture(figure: Any, path: str | os.PathLike[str]) -> Path:
    """Writes a figure beside its place and renames it, and closes it.

    Args:
        figure: matplotlib's figure.
        path: the file to write; what stands there is replaced.

    Returns:
        The file.

    Raises:
        CheckpointError: if it can't be written there.
        UnsupportedError: as `checked_picture`.
    """
    place = checked_picture(path)
    beside = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        figure.savefig(beside, dpi=150, format=place.suffix.lower()[1:] or FORMATS[0])
        beside.replace(place)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise CheckpointError(
            f"the picture {place} can't be written: {error}. Choose a folder in which you may "
            "write."
        ) from error
    finally:
        pyplot().close(figure)
    return place
