"""The grids of all pictures, and their files, which are written completely or not at all."""

import sys
from pathlib import Path

import numpy as np
import pytest

import jaxmix
from jaxmix.errors import CheckpointError, UnsupportedError
from jaxmix.families import LoRA
from jaxmix.measures import draw_measures, measure
from jaxmix.pictures import checked_picture, grid, new_figure, save_picture
from jaxmix.training import draw_strengths


def test_grid_orders_layers_by_number() -> None:
    """Layers are ordered by number, after sites outside of the layers."""
    # Strings would sort these layers in another order.
    rows, columns, numbers = grid({"h.40.q": 1.0, "h.8.q": 2.0, "h.8.v": 3.0, "head": 4.0})
    assert (rows, columns) == (["q", "v", "head"], ["", "8", "40"])
    nan = np.nan
    np.testing.assert_array_equal(numbers, [[nan, 2, 1], [nan, 3, nan], [4, nan, nan]])


def test_each_kind_of_layer_has_a_column() -> None:
    """Columns have the common names of image models' blocks, in the order in which they run."""
    flux = {
        "single_transformer_blocks.0.attn.to_q": 1.0,
        "transformer_blocks.0.attn.to_q": 2.0,
        "transformer_blocks.10.attn.to_q": 3.0,
        "proj_out": 4.0,
    }
    rows, columns, numbers = grid(flux)
    assert (rows, columns) == (["attn.to_q", "proj_out"], ["", "0\ndouble", "10", "0\nsingle"])
    nan = np.nan
    np.testing.assert_array_equal(numbers, [[nan, 2, 3, 1], [4, nan, nan, nan]])
    unet = {
        "up_blocks.1.attentions.2.proj_in": 1.0,
        "mid_block.attentions.0.proj_in": 2.0,
        "down_blocks.0.attentions.1.proj_in": 3.0,
        "down_blocks.1.attentions.0.proj_in": 4.0,
    }
    rows, columns, numbers = grid(unet)
    assert (rows, columns) == (["proj_in"], ["0.1\ndown", "1.0", "0\nmid", "1.2\nup"])
    np.testing.assert_array_equal(numbers, [[3, 4, 2, 1]])
    coders = {"model.encoder.layers.1.q": 1.0, "model.decoder.layers.1.q": 2.0}
    assert grid(coders)[1] == ["1\nencoder", "1\ndecoder"]


@pytest.mark.parametrize("suffix", [".png", ".svg", ".PDF", ""])
def test_suffix_chooses_the_format(suffix: str, tmp_path: Path) -> None:
    """The file's suffix chooses the format."""
    pytest.importorskip("matplotlib")
    figure = new_figure(1, 1)
    path = save_picture(figure, tmp_path / f"x{suffix}")
    begins = {".svg": b"<?xml", ".PDF": b"%PDF"}.get(suffix, b"\x89PNG")
    assert path.read_bytes().startswith(begins) and list(tmp_path.iterdir()) == [path]


def test_unknown_suffix_is_refused(tmp_path: Path) -> None:
    """An unknown suffix is refused before anything is drawn."""
    with pytest.raises(UnsupportedError) as caught:
        checked_picture(tmp_path / "x.docx")
    assert str(caught.value) == (
        f"the picture {tmp_path}/x.docx has an unsupported format, expected a name that ends in "
        ".png, .svg, .pdf."
    )


def test_missing_matplotlib_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says how to install matplotlib."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UnsupportedError) as caught:
        checked_picture(tmp_path / "x.png")
    assert str(caught.value) == (
        "a picture needs matplotlib, which is not installed. Install it with "
        "pip install 'jaxmix-peft[plot]'."
    )


def test_users_backend_is_kept(tmp_path: Path) -> None:
    """A notebook that draws our picture still shows its own; no figure stays open."""
    matplotlib = pytest.importorskip("matplotlib")
    pyplot = pytest.importorskip("matplotlib.pyplot")
    matplotlib.use("svg")
    try:
        save_picture(new_figure(1, 1), tmp_path / "x.png")
        assert matplotlib.get_backend() == "svg" and pyplot.get_fignums() == []
    finally:
        matplotlib.use("agg")


def test_missing_folder_leaves_no_file(tmp_path: Path) -> None:
    """Saving into a missing folder raises and leaves nothing behind."""
    pytest.importorskip("matplotlib")
    with pytest.raises(CheckpointError) as caught:
        save_picture(new_figure(1, 1), tmp_path / "no" / "x.png")
    assert str(caught.value).startswith(f"the picture {tmp_path}/no/x.png can't be written: [Errno")
    assert str(caught.value).endswith("Choose a folder with write permission.")
    assert not list(tmp_path.iterdir())


# matplotlib reads text between two dollar signs as a formula, and fails on most of these names.
NAMES = ("$x^{$", "b$_\\frac{$", "tab\there\x00", "a $ b")


def test_names_with_dollar_signs_are_drawn(tmp_path: Path) -> None:
    """Pictures of measures and strengths draw such names of adapters and sites as plain text."""
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
    measures = measure(mixed, params)
    svg = draw_measures(measures, tmp_path / "measures.svg").read_text()
    assert "<!-- $x^{$ -->" in svg and "<!-- tab\\there\\x00 -->" in svg
