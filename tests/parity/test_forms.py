"""Each form of each type equals PEFT's forward, alone and between a LoRA and a LoHa."""

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from torch import nn

import jaxmix

from .forms import FORMS
from .harness import build, difference, forward, inputs, layout, state, type_of
from .layer_cases import NETS
from .nested import Form, nested, save_all

Record = Callable[[str, object], None]


def ours(model: nn.Module, form: Form, folders: list[Path]) -> nn.Module:
    """A copy of the model with jaxmix's weights in it."""
    with jax.enable_x64(True):
        params = state(model)
        base = params if form.reads else None
        adapters = [jaxmix.load(folder, base=base) for folder in folders]
        weights = jaxmix.compose(params, adapters, layout=layout(model))
        tensors = {name: torch.from_numpy(np.array(w)) for name, w in weights.items()}
    twin = build(NETS[form.net])
    twin.load_state_dict(tensors)
    return twin.eval()


def record(record_property: Record, form: Form, errors: list[float]) -> None:
    """What the summary counts, and docs/peft_types.md shows: alone, and between its neighbours."""
    record_property("parity_cases", len(errors))
    record_property("parity_worst", max(errors))
    record_property("parity_type", (type_of(form.config()), form.net, errors))


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_form(form: Form, tmp_path: Path, record_property: Record) -> None:
    """Composed by jaxmix, run in torch."""
    model, x = build(NETS[form.net]), inputs(NETS[form.net])
    folders = save_all(model, form, tmp_path)
    words = [folders[1:2]] + ([folders] if form.nests else [])
    errors = []
    for word in words:
        truth = forward(nested(model, word), x)
        errors.append(difference(forward(ours(model, form, word), x), truth))
        # And it is not the base that was compared.
        assert difference(forward(model, x), truth) > 1e-2
    record(record_property, form, errors)
    assert max(errors) < form.tolerance, errors
