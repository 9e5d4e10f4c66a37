"""The calculator's estimates of memory agree with the TPU's own compiler, for large models."""

import pytest

from ..benchmarks.chips import MODELS, V5E, Llama
from .sharded_memory import USES
from .test_compiled import needs_compiler


@needs_compiler
@pytest.mark.thorough
@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_memory_of_a_layer_on_256_chips(model: Llama, use: str) -> None:
    """Weights, factors and results agree; at most 1% of a chip's memory is needed unexpectedly."""
    found = USES[use](model)
    assert abs(found.held_compiled / found.held - 1) < 0.02
    assert found.passing_compiled < found.passing + 0.01 * V5E.hbm
    if use.startswith("compose"):  # one pass over each weight, without Δ
        assert found.passing_compiled < 1e6
