"""What pictures have in common: their maps, and files that are there whole or not at all."""

import sys
from pathlib import Path

import numpy as np
import pytest

from jaxmix.errors import CheckpointError, UnsupportedError
from jaxmix.pictures import checked_picture, grid, pyplot, save_picture


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
        f"the picture {tmp_path}/x.docx is of a format that is not written here, expected a name "
        "that ends in .png, .svg, .pdf."
    )


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said how to install it."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UnsupportedError) as caught:
        checked_picture(tmp_path / "x.png")
    assert str(caught.value) == (
        "a picture needs matplotlib, which is not installed here. Install it: "
        "pip install 'jaxmix-peft[plot]'."
    )


def test_no_such_folder(tmp_path: Path) -> None:
    """In words, and nothing is left."""
    pytest.importorskip("matplotlib")
    with pytest.raises(CheckpointError) as caught:
        save_picture(pyplot().figure(), tmp_path / "no" / "x.png")
    assert str(caught.value).startswith(f"the picture {tmp_path}/no/x.png can't be written: [Errno")
    assert str(caught.value).endswith("Choose a folder in which you may write.")
    assert not list(tmp_path.iterdir())
