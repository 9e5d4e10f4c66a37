"""What pictures have in common: their maps, and files that are there whole or not at all."""

import sys
from pathlib import Path

import numpy as np
import pytest

import jaxmix
from jaxmix.errors import CheckpointError, UnsupportedError
from jaxmix.families import LoRA
from jaxmix.measures import draw_measures, measure
from jaxmix.pictures import checked_picture, grid, pyplot, save_picture
from jaxmix.training import draw_strengths


def test_grid() -> None:
    """Layers are numbers, in their order; what lies in none comes before them."""
    # Python keeps a set of these layers in another order.
    rows, columns, numbers = grid({"h.40.q": 1.0, "h.8.q": 2.0, "h.8.v": 3.0, "head": 4.0})
    assert (rows, columns) == (["q", "v", "head"], ["", "8", "40"])
    nan = np.nan
    np.testing.assert_array_equal(numbers, [[nan, 2, 1], [nan, 3, nan], [4, nan, nan]])


@pytest.mark.parametrize("end", [".png", ".svg", ".PDF", ""])
def test_formats(end: str, tmp_path: Path) -> None:
    """By the name's end."""
    pytest.importorskip("matplotlib")
    figure = pyplot().figure()
    place = save_picture(figure, tmp_path / f"x{end}")
    begins = {".svg": b"<?xml", ".PDF": b"%PDF"}.get(end, b"\x89PNG")
    assert place.read_bytes().startswith(begins) and list(tmp_path.iterdir()) == [place]


def test_another_format(tmp_path: Path) -> None:
    """Is refused before anything is drawn."""
    with pytest.raises(UnsupportedError) as caught:
        checked_picture(tmp_path / "x.docx")
    assert str(caught.value) == (
        f"the picture {tmp_path}/x.docx has an unsupported format, expected a name that ends in "
        ".png, .svg, .pdf."
    )


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said how to install it."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UnsupportedError) as caught:
        checked_picture(tmp_path / "x.png")
    assert str(caught.value) == (
        "a picture needs matplotlib, which is not installed. Install it with "
        "pip install 'jaxmix-peft[plot]'."
    )


def test_no_such_folder(tmp_path: Path) -> None:
    """In words, and nothing is left."""
    pytest.importorskip("matplotlib")
    with pytest.raises(CheckpointError) as caught:
        save_picture(pyplot().figure(), tmp_path / "no" / "x.png")
    assert str(caught.value).startswith(f"the picture {tmp_path}/no/x.png can't be written: [Errno")
    assert str(caught.value).endswith("Choose a folder with write permission.")
    assert not list(tmp_path.iterdir())


# matplotlib would take what stands between two dollars for a formula, and fail at most of it.
NAMES = ("$x^{$", "b$_\\frac{$", "tab\there\x00", "a $ b")


def test_names_are_no_formulas(tmp_path: Path) -> None:
    """In every picture: of measures, of strengths, and of the sites in them."""
    pytest.importorskip("matplotlib")
    sites = ("h.0.$\\q^$", "h.1.$\\q^$", "$_{$")
    a, b = np.ones((1, 4), np.float32), np.ones((6, 1), np.float32)
    params = {f"{site}.weight": np.zeros((6, 4), np.float32) for site in sites}
    parts = [
        jaxmix.Adapter({site: LoRA(a * i, b, 1.0) for site in sites}, name=name)
        for i, name in enumerate(NAMES, 1)
    ]
    mixed = jaxmix.mix(*parts)
    assert draw_strengths(mixed, tmp_path / "strengths.png").stat().st_size
    found = measure(mixed, params)
    drawn = draw_measures(found, tmp_path / "measures.svg").read_text()
    assert "<!-- $x^{$ -->" in drawn and "<!-- tab\\there\\x00 -->" in drawn
