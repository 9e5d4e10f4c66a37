"""Pictures of measures: what is drawn where, and in which colours."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxmix.errors import AdapterError
from jaxmix.measures import Measures, PairMeasures, SiteMeasures, draw_measures, measure
from jaxmix.measures import picture

from ..messages import full_text
from .test_measuring import MIXED, PARAMS


def test_draw_measures_writes_a_picture(tmp_path: Path) -> None:
    """Pictures may show one adapter or two, sites of one adapter only, and pairs without signs."""
    pytest.importorskip("matplotlib")
    measures = measure(MIXED, PARAMS)
    pair = measures.pairs["first", "second"]
    silent = PairMeasures(**{**asdict(pair["h.1.q"]), "signs": None})
    many = {f"h.{i}.q": SiteMeasures(1.0, 2.0, 1.0) for i in range(20)}
    for case in (
        measures,
        Measures(measures.sites, {("first", "second"): {"h.1.q": silent}}, measures.energies),
        Measures({"one": many, "none": {}}, {}, {}),
    ):
        path = draw_measures(case, tmp_path / "x.png")
        assert path.read_bytes().startswith(b"\x89PNG") and list(tmp_path.iterdir()) == [path]
    with pytest.raises(AdapterError) as caught:
        draw_measures(Measures({"b": {}}), tmp_path / "y.png")
    assert str(caught.value) == (
        "draw_measures got no measures, expected those of at least one site."
    )
