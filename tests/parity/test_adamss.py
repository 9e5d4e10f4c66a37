"""AdaMSS matches PEFT in float32; PEFT determines its groups with scikit-learn."""

import copy
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import numpy as np
import peft
import pytest
import torch

import jaxmix

from .harness import build, difference, inputs, state
from .layer_cases import NETS

Record = Callable[[str, object], None]

pytestmark = pytest.mark.skipif(find_spec("sklearn") is None, reason="needs scikit-learn")

FORMS: dict[str, dict[str, Any]] = {
    "plain": {"r": 4, "num_subspaces": 2, "subspace_rank": 1},
    "ranks": {"r": 5, "num_subspaces": 3, "subspace_rank": 2},
    "dynamic": {"r": 6, "num_subspaces": 3, "subspace_rank": 2, "use_dynamic_rank": True},
}


@pytest.mark.parametrize("net", ["linear", "no_bias"])
@pytest.mark.parametrize("name", FORMS)
def test_adamss_matches_peft(name: str, net: str, tmp_path: Path, record_property: Record) -> None:
    """An adapter with random values, saved by PEFT, matches after loading and after export."""
    model, x = build(NETS[net]).float(), inputs(NETS[net])
    config = peft.AdamssConfig(target_modules=["one", "two"], **FORMS[name])
    adapted = peft.get_peft_model(copy.deepcopy(model), config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for param in adapted.parameters():
            if param.requires_grad:
                param.copy_(0.5 * torch.randn(param.shape, generator=generator))
    adapted.save_pretrained(str(tmp_path / "in"))
    truth = _run(adapted, x)
    params = state(model)
    with jax.enable_x64(True):
        adapter = jaxmix.load(tmp_path / "in", base=params)
        weights = jaxmix.compose(params, adapter)
        out = jaxmix.export_peft(adapter, tmp_path / "out")
    composed_model = copy.deepcopy(model)
    composed_model.load_state_dict({k: torch.from_numpy(np.array(w)) for k, w in weights.items()})
    error = difference(_run(composed_model, x), truth)
    record_property("parity_cases", 1)
    record_property("parity_worst", error)
    record_property("parity_type", ("ADAMSS", net, [error]))
    assert error < 1e-6
    assert difference(_run(model, x), truth) > 1e-2
    reloaded = peft.PeftModel.from_pretrained(copy.deepcopy(model), str(out))
    assert difference(_run(reloaded, x), truth) < 1e-6


def _run(model: torch.nn.Module, x: np.ndarray) -> np.ndarray:
    """Runs the model in float32, because PEFT keeps parts of it in float32 anyway."""
    with torch.no_grad():
        return model.eval()(torch.from_numpy(x).float()).numpy()
