"""The NumPy reference matches PEFT's forward for all families, pairs and layer types."""

from pathlib import Path

import pytest

from ..goldens.nets import MLP, run
from .harness import TOLERANCE, TorchNet, difference, forward, inputs, mixed_model, state
from .layer_cases import CASES, Case
from .numpy_fold import fold
from .stacks import ADDITIVE_AND_OFT, KINDS, folders_of
from .truth import run_peft


def test_numpy_network_matches_torch(mlp: TorchNet) -> None:
    """The two forwards agree, so a golden is valid for both."""
    x = inputs(MLP)
    assert difference(run(MLP, state(mlp), x), forward(mlp, x)) < TOLERANCE


@pytest.mark.parametrize("kind", KINDS)
def test_fold_matches_pairs(kind: str, mlp: TorchNet, saved: Path) -> None:
    """Each adapter matches alone and before each other family."""
    x = inputs(MLP)
    for stack in [(kind,), *((kind, other) for other in ADDITIVE_AND_OFT)]:
        folders = [saved / name for name in folders_of(stack)]
        truth = forward(mixed_model(mlp, folders), x)
        actual = run(MLP, fold(state(mlp), folders), x)
        assert difference(actual, truth) < TOLERANCE, stack


@pytest.mark.one_of(2)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_fold_matches_layers(case: Case, tmp_path: Path) -> None:
    """Each row of the table of layer types matches."""
    truth = run_peft(case, tmp_path)
    actual = run(truth.net, fold(state(truth.model), truth.folders), truth.x)
    assert difference(actual, truth.output) < TOLERANCE
