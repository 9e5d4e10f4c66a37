"""Types that wrap only unwrapped layers, and types that draw arrays instead of saving them.

The former can only be innermost: PEFT looks for layers of its own types, and finds none below
another wrapper; SuperTuning reads the innermost weight. Arrays are drawn in torch's default dtype,
float32 here as for users; everything else runs in float64.
"""

import copy
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import peft
import pytest
import torch

import jaxmix

from ..uncompiled import uncompiled
from .harness import TorchNet, build, difference, forward, inputs, layout, save_adapter, state
from .layer_cases import NETS
from .nested import Form, neighbours, nested
from .test_forms import record

Record = Callable[[str, object], None]

_FAN = {"fan_in_fan_out": True}
_SEED = {"projection_prng_key": 7}
# PEFT computes FourierFT's Δ in float32, whatever the weights' dtype.
_SINGLE = 1e-6
_UNSAVED = {"save_projection": False}


def _forms() -> list[Form]:
    forms = []
    for net in ("linear", "no_bias", "gpt2", "gpt2_square"):
        fan = _FAN if net.startswith("gpt2") else {}
        for storage, extra in (("saved", {}), ("drawn", _UNSAVED)):
            options = {**_SEED, **extra, **fan}
            name, reads = f"{net}-{storage}", storage == "drawn"
            forms += [
                Form(f"vera-{name}", net, peft.VeraConfig, {"r": 3, **options}, reads=reads),
                Form(f"pvera-{name}", net, peft.PveraConfig, {"r": 3, **options}, reads=reads),
                Form(
                    f"randlora-{name}", net, peft.RandLoraConfig, {"r": 3, **options}, reads=reads
                ),
            ]
        tiny = {"r": 2, "u": 5, "init_weights": "uniform", **fan}
        forms += [
            Form(f"tinylora-{net}", net, peft.TinyLoraConfig, tiny),
            Form(f"tinylora-{net}-tied", net, peft.TinyLoraConfig, {**tiny, "weight_tying": 1.0}),
        ]
    for kind in ("sparse", "very_sparse"):
        for storage, extra in (("saved", {}), ("drawn", _UNSAVED)):
            options, reads = {"r": 3, kind: True, **_SEED, **extra}, storage == "drawn"
            forms.append(
                Form(
                    f"randlora-{kind}-{storage}", "wide", peft.RandLoraConfig, options, reads=reads
                )
            )
    for name, options in (
        ("many", {"n_frequency": 40, "scaling": 30.0}),
        ("few", {"n_frequency": 2, "scaling": 60.0, "n_frequency_pattern": {"two": 3}}),
    ):
        make, extra = peft.FourierFTConfig, {"reads": True, "tolerance": _SINGLE}
        forms += [
            Form(f"fourierft-{name}-linear", "linear", make, options, **extra),
            Form(f"fourierft-{name}-gpt2", "gpt2", make, {**options, **_FAN}, **extra),
        ]
    pattern = {"sparsity": 0.8, "save_precomputed_indices": False}
    wave = {"n_frequency": 30, "scaling": 2.0, "proportional_parameters": True}
    three = {"r": 2, "u": 5, "target_modules": ["lin"]}
    return [
        *forms,
        Form("supertuning", "linear", peft.SupertuningConfig, {"sparsity": 0.8, "r": 3}),
        *(
            Form(
                f"supertuning-found-{top}",
                "linear",
                peft.SupertuningConfig,
                {**pattern, "select_top": top},
                reads=True,
            )
            for top in (True, False)
        ),
        Form("tinylora-embedding", "embedding", peft.TinyLoraConfig, {"r": 2, "u": 5}),
        Form("tinylora-groups", "mlp", peft.TinyLoraConfig, {**three, "weight_tying": 0.3}),
        Form("waveft-proportional", "linear", peft.WaveFTConfig, wave, reads=True),
    ]


def _run(form: Form, model: torch.nn.Module, x: np.ndarray) -> np.ndarray:
    """Returns the model's output; FourierFT's forward needs float32 as torch's default."""
    if form.make is not peft.FourierFTConfig:
        return forward(model, x)
    with torch.no_grad():
        return model(torch.from_numpy(x)).numpy()


def _ours(model: TorchNet, form: Form, folders: list[Path]) -> TorchNet:
    """Returns a copy of the model with jaxmix's weights."""
    params, twin = state(model), copy.deepcopy(model)
    with jax.enable_x64(True), uncompiled():
        base = params if form.reads else None
        adapters = [jaxmix.load(folder, base=base) for folder in folders]
        weights = jaxmix.compose(params, adapters, layout=layout(model))
    twin.load_state_dict({name: torch.from_numpy(np.array(w)) for name, w in weights.items()})
    return twin.eval()


def _saved_needs_no_torch(folder: Path, model: torch.nn.Module, out: Path) -> None:
    """Checks that a saved adapter contains the drawn arrays, and loads without torch and base."""
    params = state(model)
    with jax.enable_x64(True), pytest.MonkeyPatch.context() as patch:
        adapter = jaxmix.load(folder, base=params)
        jaxmix.save(adapter, out)
        patch.setitem(sys.modules, "torch", None)
        expected, loaded = (
            jaxmix.compose(params, item, layout=layout(model))
            for item in (adapter, jaxmix.load(out))
        )
        assert all(np.array_equal(expected[name], loaded[name]) for name in params)


# PEFT recommends saving what it draws.
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("form", _forms(), ids=lambda form: form.name)
def test_drawn_arrays_match_peft(form: Form, tmp_path: Path, record_property: Record) -> None:
    """The composed weights match PEFT's forward, alone and innermost of three."""
    model, x, rng = build(NETS[form.net]), inputs(NETS[form.net]), np.random.default_rng(0)
    assert torch.get_default_dtype() == torch.float32
    adapted = peft.get_peft_model(copy.deepcopy(model), form.config()).double().eval()
    with torch.no_grad():
        for param in adapted.parameters():
            if param.requires_grad:
                param.copy_(torch.from_numpy(0.5 * rng.normal(size=param.shape)))
    folders = [tmp_path / name for name in ("form", "before", "after")]
    adapted.save_pretrained(str(folders[0]))
    for i, config in enumerate(neighbours(form)):
        save_adapter(model, config, folders[1 + i], seed=i)
    if form.reads:
        _saved_needs_no_torch(folders[0], model, tmp_path / "saved")
    inner = adapted.base_model.model
    stacks = [
        (folders[:1], _run(form, adapted, x)),
        (folders, _run(form, nested(inner, folders[1:]), x)),
    ]
    errors = [
        difference(_run(form, _ours(model, form, stack), x), truth) for stack, truth in stacks
    ]
    # The adapter changes the output.
    assert min(difference(_run(form, model, x), truth) for _, truth in stacks) > 1e-2
    record(record_property, form, errors)
    assert max(errors) < form.tolerance, errors
