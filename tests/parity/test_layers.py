"""Every layer type and form of every family matches PEFT, alone and in stacks."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ..uncompiled import uncompiled
from .harness import TOLERANCE, difference, forward, type_of
from .layer_cases import CASES, Case
from .ours import jaxmix_model
from .truth import run_peft

Record = Callable[[str, object], None]


@pytest.mark.one_of(3)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_layer_matches_peft(case: Case, tmp_path: Path, record_property: Record) -> None:
    """The composed weights, run in torch, match PEFT's forward."""
    truth = run_peft(case, tmp_path)
    # The goldens compare the same cases with compiled programs.
    with uncompiled():
        composed_model = jaxmix_model(truth.model, truth.folders)
    error = difference(forward(composed_model, truth.x), truth.output)
    record_property("parity_cases", 1)
    record_property("parity_worst", error)
    if len(case.adapters) == 1:
        kind = type_of(case.configs()[0])
        record_property("parity_type", (kind, case.net, [error]))
    assert error < TOLERANCE
    # Without a change the comparison would prove nothing; two cases change almost nothing.
    change = difference(forward(truth.model, truth.x), truth.output)
    assert change > 1e-2 or case.name in ("oft-neumann1", "oft-coft-default_eps")
