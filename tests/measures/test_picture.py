"""Pictures of measures: what is drawn where, and in which colours."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxmix.measures import Measures, PairMeasures, SiteMeasures, draw_measures, picture


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are drawn, instead of files."""
    pytest.importorskip("matplotlib")
    seen: list[Any] = []

    def keep(figure: Any, path: Any) -> Path:
        seen.append(figure)
        return Path(path)

    monkeypatch.setattr(picture, "save_picture", keep)
    return seen


def site(norm: float, rank: float = 1.0, share: float = 0.5) -> SiteMeasures:
    return SiteMeasures(norm, rank, share)


def pair(cosine: float, signs: float | None = 0.5) -> PairMeasures:
    return PairMeasures(
        **{**dict.fromkeys(PairMeasures.__annotations__, 0.0)} | {"cosine": cosine, "signs": signs}
    )  # pyright: ignore


def drawn(axes: Any) -> Any:
    """The numbers of a panel, NaN where it has none."""
    return np.ma.filled(axes.images[0].get_array(), np.nan)


def test_rows_are_adapters_and_all_maps_have_the_same_sites(figures: list[Any]) -> None:
    """A site that an adapter does not change stays empty; colours have common limits."""
    sites = {
        "a": {"h.0.q": site(1.0), "h.2.q": site(4.0)},
        "none": {},
        "b": {"h.2.q": site(2.0, 3.0, -0.25), "h.0.v": site(8.0)},
    }
    draw_measures(Measures(sites, {}, {}), "x.png")
    panels = figures[0].subfigs[0].axes[:6]
    assert [axes.get_ylabel() for axes in panels[::3]] == ["a", "b"]
    nan = np.nan
    np.testing.assert_array_equal(drawn(panels[0]), [[1, 4], [nan, nan]])
    np.testing.assert_array_equal(drawn(panels[3]), [[nan, 2], [8, nan]])
    limits = [axes.images[0].get_clim() for axes in panels[:3]]
    assert limits == [(0, 8), (1, 3), (-0.5, 0.5)]
    assert limits == [axes.images[0].get_clim() for axes in panels[3:]]


def test_single_adapter_has_no_shares_and_no_pairs(figures: list[Any]) -> None:
    """Of many layers every fourth is labelled; equal numbers have a range of colours too."""
    draw_measures(Measures({"a": {f"h.{i}.q": site(0.0) for i in range(13)}}, {}, {}), "x.png")
    (figure,) = figures
    assert not figure.subfigs
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles == ["norm of the effect, ‖Δ‖", "effective rank"]
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert labels == ["0", "4", "8", "12"]
    assert [axes.images[0].get_clim() for axes in figure.axes[:2]] == [(0, 1), (1, 2)]


def test_tables_average_the_sites_of_a_pair(figures: list[Any]) -> None:
    """In both halves of the table; a measure that no site has is left out."""
    sites = {name: {"q": site(1.0)} for name in ("a", "b", "c")}
    pairs = {
        ("a", "b"): {"q": pair(1.0, None), "v": pair(0.5, None)},
        ("b", "c"): {"q": pair(-0.25, 0.75)},
        ("a", "c"): {},
    }
    draw_measures(Measures(sites, pairs, {}), "x.png")
    cosines, signs = figures[0].subfigs[1].axes[:2]
    nan = np.nan
    np.testing.assert_array_equal(
        drawn(cosines), [[nan, 0.75, nan], [0.75, nan, -0.25], [nan, -0.25, nan]]
    )
    np.testing.assert_array_equal(
        drawn(signs), [[nan, nan, nan], [nan, nan, 0.75], [nan, 0.75, nan]]
    )
    assert cosines.images[0].get_clim() == (-1, 1) and signs.images[0].get_clim() == (0, 1)
    texts = {(text.get_text(), text.get_color()) for text in cosines.texts}
    assert texts == {("0.75", "white"), ("-0.25", "black")}
