"""Every layer type and form of every family that PEFT has, one by one and stacked."""

from collections.abc import Callable
from pathlib import Path

import pytest

from .harness import TOLERANCE, difference, forward, type_of
from .layer_cases import CASES, Case
from .ours import jaxmix_model
from .truth import make

Record = Callable[[str, object], None]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_layer(case: Case, tmp_path: Path, record_property: Record) -> None:
    """Composed by jaxmix, run in torch, equal to PEFT."""
    truth = make(case, tmp_path)
    error = difference(forward(jaxmix_model(truth.model, truth.folders), truth.x), truth.output)
    record_property("parity_cases", 1)
    record_property("parity_worst", error)
    if len(case.adapters) == 1:
        kind = type_of(case.configs()[0])
        record_property("parity_type", (kind, case.net, [error]))
    assert error < TOLERANCE
    # And it is not the base that was compared: only one row is meant to change (almost) nothing.
    moved = difference(forward(truth.model, truth.x), truth.output)
    assert moved > 1e-2 or case.name in ("oft-neumann1", "oft-coft-default_eps")
