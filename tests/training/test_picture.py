"""Strengths by adapter and site, and their picture."""

from pathlib import Path

import numpy as np
import pytest

import jaxmix
from jaxmix import Adapter
from jaxmix.errors import AdapterError
from jaxmix.pictures import grid
from jaxmix.training import by_site, draw_strengths, strengths_by_site

from .samples import lora, oft


def test_strengths_by_site_joins_split_adapters() -> None:
    """Adapters that `by_site` split are joined; other names with an @ are kept."""
    mixed = jaxmix.mix(*by_site(0.5 * lora()).parts, oft().renamed("odd@name"))
    assert strengths_by_site(mixed) == {
        "lora": {"one": 0.5, "two": 0.5},
        "odd@name": {"one": 1.0},
    }


def test_draw_strengths_writes_a_grid_per_adapter(tmp_path: Path) -> None:
    """The picture has a grid per adapter, with modules as rows and layers as columns."""
    pytest.importorskip("matplotlib")
    sites = {"h.0.q": 0.2, "h.0.v": 1.5, "h.10.q": 0.9, "h.2.q": 1.1, "head": 0.4}
    update = lora().updates["one"]
    parts = [Adapter({site: update}, s, f"a@{site}") for site, s in sites.items()]
    mixed = jaxmix.mix(*parts, Adapter({"head": update}, name="b"))
    path = draw_strengths(mixed, tmp_path / "strengths.png")
    assert path.read_bytes().startswith(b"\x89PNG") and list(tmp_path.iterdir()) == [path]
    rows, columns, numbers = grid(sites)
    assert (rows, columns) == (["q", "v", "head"], ["", "0", "2", "10"])
    np.testing.assert_array_equal(
        numbers,
        [[np.nan, 0.2, 1.1, 0.9], [np.nan, 1.5, np.nan, np.nan], [0.4, np.nan, np.nan, np.nan]],
    )


def test_draw_strengths_rejects_an_empty_mix(tmp_path: Path) -> None:
    with pytest.raises(AdapterError) as caught:
        draw_strengths(jaxmix.mix(), tmp_path / "x.png")
    assert str(caught.value) == (
        "draw_strengths got mix of nothing: the identity, expected an adapter with sites."
    )
