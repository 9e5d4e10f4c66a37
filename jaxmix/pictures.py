"""Shared code of all pictures: maps of modules by layers, and safe writing of files."""

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
    "new_figure",
    "printable",
    "save_picture",
]

# By the suffix of a file's name; the first one is the default.
FORMATS = ("png", "svg", "pdf")

# Dollar signs in names do not start formulas.
AS_IS: Mapping[str, Any] = {"parse_math": False}

_LAYER = re.compile(r"(?:^|\.)(\d+)(?:\.|$)")
# A block of a U-Net, and the number of the layer in it.
_UNET = re.compile(r"(?:^|\.)(down_blocks|up_blocks)\.(\d+)\.\w+\.(\d+)\.")
# Short names for the blocks of image models.
_KINDS = {
    "input_blocks": "in",
    "down_blocks": "down",
    "transformer_blocks": "double",
    "double_blocks": "double",
    "mid_block": "mid",
    "middle_block": "mid",
    "single_transformer_blocks": "single",
    "single_blocks": "single",
    "up_blocks": "up",
    "output_blocks": "out",
}
_ORDER = ("", *dict.fromkeys(_KINDS.values()))
# Parts of names that do not distinguish kinds of layers.
_PLAIN = ("model", "layers", "layer", "blocks", "block", "h", "attentions", "resnets")


def new_figure(width: float, height: float) -> Any:
    """Returns an empty matplotlib figure that no window or notebook shows.

    It does not use `pyplot`, whose backend belongs to the user's session.

    Args:
        width: Its width in inches.
        height: Its height in inches.

    Raises:
        UnsupportedError: If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UnsupportedError(
            "a picture needs matplotlib, which is not installed. Install it with "
            "pip install 'jaxmix-peft[plot]'."
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def printable(name: str) -> str:
    r"""Replaces unprintable characters of a name, for which fonts have no glyph, by escapes.

    Example:
        >>> print(printable("a\tb$"))
        a\tb$
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)


def grid(values: Mapping[str, float]) -> tuple[list[str], list[str], list[list[float]]]:
    r"""Arranges numbers of sites in a grid with a row per module and a column per layer.

    Args:
        values: ``{site: number}``.

    Returns:
        The names of the rows, the names of the columns, and the numbers, NaN where there is no
        site. If there are several kinds of layers, the first column of each kind is labelled with
        it.

    Example:
        >>> grid({"layers.0.q": 1.0, "layers.2.q": 2.0, "norm": 3.0})
        (['q', 'norm'], ['', '0', '2'], [[nan, 1.0, 2.0], [3.0, nan, nan]])
        >>> grid({"transformer_blocks.0.q": 1.0, "single_transformer_blocks.0.q": 2.0})
        (['q'], ['0\ndouble', '0\nsingle'], [[1.0, 2.0]])
    """
    cells = {site: _cell(site) for site in values}
    rows = list(dict.fromkeys(row for row, _ in cells.values()))
    kinds = dict.fromkeys(kind for _, (kind, _) in cells.values())
    order = {kind: i for i, kind in enumerate(sorted(kinds, key=_rank))}
    columns = sorted({at for _, at in cells.values()}, key=lambda at: (order[at[0]], at[1]))
    by_cell = {cell: values[site] for site, cell in cells.items()}
    numbers = [[by_cell.get((row, at), float("nan")) for at in columns] for row in rows]
    labels = [".".join(map(str, layer)) for _, layer in columns]
    if len(kinds) - ("" in kinds) > 1:
        firsts = {kind: i for i, (kind, _) in reversed(list(enumerate(columns)))}
        labels = [
            f"{label}\n{kind}" if kind and firsts[kind] == i else label
            for i, (label, (kind, _)) in enumerate(zip(labels, columns, strict=True))
        ]
    return rows, labels, numbers


def _cell(site: str) -> tuple[str, tuple[str, tuple[int, ...]]]:
    """Returns a site's module, the kind of its layer, and the layer's numbers."""
    if match := _UNET.search(site):
        return site[match.end() :], (_KINDS[match[1]], (int(match[2]), int(match[3])))
    if not (match := _LAYER.search(site)):
        return site, ("", ())
    before = [part for part in site[: match.start()].split(".") if part not in _PLAIN]
    kind = " ".join(_KINDS.get(part, part) for part in before) or "layers"
    return site[match.end() :] or site[: match.start()], (kind, (int(match[1]),))


def _rank(kind: str) -> int:
    """The position of a kind of layers, in the order of execution; unknown kinds come last."""
    return _ORDER.index(kind) if kind in _ORDER else len(_ORDER)


def heat_map(
    axes: Any,
    rows: Sequence[str],
    columns: Sequence[str],
    numbers: Sequence[Sequence[float]],
    **options: Any,
) -> Any:
    """Draws a map without a frame.

    Args:
        axes: Matplotlib's axes.
        rows: The names of the rows.
        columns: The names of the columns.
        numbers: A list per row; NaN stays white.
        **options: Colours and their limits, for matplotlib's ``imshow``.

    Returns:
        The image, for a colour bar.
    """
    image = axes.imshow(numbers, aspect="auto", **options)
    labels = ["\n".join(map(printable, label.split("\n"))) for label in columns]
    axes.set_xticks(range(len(columns)), labels, **AS_IS)
    axes.set_yticks(range(len(rows)), map(printable, rows), **AS_IS)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return image


def checked_picture(path: str | os.PathLike[str]) -> Path:
    """Checks that a picture can be drawn and that its file has a supported format.

    Args:
        path: The file to write.

    Returns:
        The path.

    Raises:
        UnsupportedError: If matplotlib is missing, or the suffix is not that of a supported format.
    """
    file = output_path(path, "picture")
    if file.suffix.lower()[1:] not in ("", *FORMATS):
        raise UnsupportedError(
            f"the picture {path} has an unsupported format, expected a name that ends in "
            f"{', '.join(f'.{suffix}' for suffix in FORMATS)}."
        )
    new_figure(1, 1)
    return file


def save_picture(figure: Any, path: str | os.PathLike[str]) -> Path:
    """Writes a figure to a temporary file, and renames it to its final name.

    Args:
        figure: Matplotlib's figure.
        path: The file to write; an existing file is replaced.

    Returns:
        The path of the file.

    Raises:
        CheckpointError: If the file can't be written.
        UnsupportedError: As for `checked_picture`.
    """
    file = checked_picture(path)
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        figure.savefig(temporary, dpi=150, format=file.suffix.lower()[1:] or FORMATS[0])
        temporary.replace(file)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise CheckpointError(
            f"the picture {file} can't be written: {error}. Choose a folder with write permission."
        ) from error
    return file
