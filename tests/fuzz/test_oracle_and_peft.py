"""The oracle matches PEFT: each module's weight in PEFT's unmerged forward in float64."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from .case import Case, write
from .kinds import bases
from .kinds.peft import PEFT
from .mutations import mutated
from .oracle import answer
from .tensorfile import BadFileError

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

# For these sizes PEFT itself would not split LoKr's matrices into pairs.
KINDS = [
    name
    for name in PEFT
    if name.startswith("peft-") and "stack" not in name and name != "peft-lokr-pairs"
]
NUMBERS = range(40)


def _model(case: Case) -> Any:
    """Returns linear layers under the base's names, with its numbers in float64."""
    base = answer(case).base
    root = torch.nn.Module()
    for site in (*bases.MODULES, "score"):
        *above, last = site.split(".")
        holder = root
        for part in above:
            if not hasattr(holder, part):
                holder.add_module(part, torch.nn.Module())
            holder = getattr(holder, part)
        weight = base.numbers(f"{site}.weight")
        has_bias = f"{site}.bias" in base.tensors
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0], has_bias, dtype=torch.float64)
        with torch.no_grad():
            layer.weight.copy_(torch.tensor(weight))
            if has_bias:
                layer.bias.copy_(torch.tensor(base.numbers(f"{site}.bias")))
        holder.add_module(last, layer)
    return root


def _weights(case: Case, folder: Path) -> dict[str, np.ndarray] | None:
    """Returns each layer's weight in PEFT's model: its outputs for the identity, without bias.

    None if the file has keys that PEFT does not take.
    """
    write(case.files, folder)
    config = peft.PeftConfig.from_pretrained(folder / "adapter")
    config.task_type, config.inference_mode = None, True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(_model(case), config, autocast_adapter_dtype=False)
        tensors = peft.utils.load_peft_weights(str(folder / "adapter"), device="cpu")
        if peft.set_peft_model_state_dict(model, tensors).unexpected_keys:
            return None
    model = model.double().eval()
    weights = {}
    for site in (*bases.MODULES, "score"):
        layer = model.get_submodule(f"base_model.model.{site}")
        size = answer(case).base.modules[site][1]
        with torch.no_grad():
            eye = torch.eye(size, dtype=torch.float64)
            zero = layer(torch.zeros(1, size, dtype=torch.float64))
            weights[f"{site}.weight"] = (layer(eye) - zero).numpy().T
    return weights


@pytest.mark.one_of(2)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_oracle_matches_peft(kind: str, tmp_path: Path) -> None:
    """They agree on the valid adapter and on all mutations that both read."""
    compared = 0
    for number in NUMBERS:
        case = mutated(kind, number)
        if any(change.startswith("base/") for change in case.changes):
            continue
        try:
            right = answer(case)
        except BadFileError:
            continue
        try:
            weights = _weights(case, tmp_path / str(number))
        except Exception:  # PEFT raises many kinds of errors
            assert number
            continue
        if weights is None:
            continue
        compared += 1
        for name, weight in weights.items():
            leaf = right.changed.get(name)
            expected = right.base.numbers(name) if leaf is None else leaf.numbers
            # LoHa's scale and OFT's numbers pass through float32 in PEFT.
            np.testing.assert_allclose(
                weight, expected, rtol=1e-5, atol=1e-6, err_msg=f"{number}: {name}, {case.changes}"
            )
    assert compared > 2
