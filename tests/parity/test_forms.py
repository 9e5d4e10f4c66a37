"""Each form of each type matches PEFT's forward, alone and between a LoRA and a LoHa."""

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from torch import nn

import jaxmix

from ..uncompiled import uncompiled
from .forms import FORMS
from .harness import build, difference, forward, inputs, layout, state, type_of
from .layer_cases import NETS
from .nested import Form, nested, save_all

Record = Callable[[str, object], None]


def jaxmix_model(model: nn.Module, form: Form, folders: list[Path]) -> nn.Module:
    """Returns a copy of the model with jaxmix's weights."""
    with jax.enable_x64(True), uncompiled():
        params = state(model)
        base = params if form.needs_base else None
        adapters = [jaxmix.load(folder, base=base) for folder in folders]
        weights = jaxmix.compose(params, adapters, layout=layout(model))
        tensors = {name: torch.from_numpy(np.array(w)) for name, w in weights.items()}
    composed_model = build(NETS[form.net])
    composed_model.load_state_dict(tensors)
    return composed_model.eval()


def record(record_property: Record, form: Form, errors: list[float]) -> None:
    """Records the errors, alone and nested, for the summary and docs/peft_types.md."""
    record_property("parity_cases", len(errors))
    record_property("parity_worst", max(errors))
    record_property("parity_type", (type_of(form.config()), form.net, errors))


@pytest.mark.one_of(4)
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_form_matches_peft(form: Form, tmp_path: Path, record_property: Record) -> None:
    """The composed weights, run in torch, match PEFT's forward."""
    model, x = build(NETS[form.net]), inputs(NETS[form.net])
    folders = save_all(model, form, tmp_path)
    stacks = [folders[1:2]] + ([folders] if form.is_nested else [])
    errors = []
    for stack in stacks:
        truth = forward(nested(model, stack), x)
        errors.append(difference(forward(jaxmix_model(model, form, stack), x), truth))
        # Otherwise the comparison would prove nothing.
        assert difference(forward(model, x), truth) > 1e-2
    record(record_property, form, errors)
    assert max(errors) < form.tolerance, errors
