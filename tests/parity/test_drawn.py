"""Types that can only be innermost, and types that draw arrays instead of saving them.

A type is innermost if PEFT wraps only plain layers with it, or, as for SuperTuning, reads the
innermost weight. PEFT draws arrays in torch's default dtype, which is float32 here as for users.
Everything else runs in float64.
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

_FAN_IN = {"fan_in_fan_out": True}
_SEED = {"projection_prng_key": 7}
# PEFT computes FourierFT's Δ in float32, whatever the weights' dtype.
_FLOAT32_TOLERANCE = 1e-6
_UNSAVED = {"save_projection": False}


def _forms() -> list[Form]:
    forms = []
    for net in ("linear", "no_bias", "gpt2", "gpt2_square"):
        fan = _FAN_IN if net.startswith("gpt2") else {}
        for storage, storage_options in (("saved", {}), ("drawn", _UNSAVED)):
            options = {**_SEED, **storage_options, **fan}
            name, reads = f"{net}-{storage}", storage == "drawn"
            forms += [
                Form(f"vera-{name}", net, peft.VeraConfig, {"r": 3, **options}, needs_base=reads),
                Form(f"pvera-{name}", net, peft.PveraConfig, {"r": 3, **options}, needs_base=reads),
                Form(
                    f"randlora-{name}",
                    net,
                    peft.RandLoraConfig,
                    {"r": 3, **options},
                    needs_base=reads,
                ),
            ]
        tiny = {"r": 2, "u": 5, "init_weights": "uniform", **fan}
        forms += [
            Form(f"tinylora-{net}", net, peft.TinyLoraConfig, tiny),
            Form(f"tinylora-{net}-tied", net, peft.TinyLoraConfig, {**tiny, "weight_tying": 1.0}),
        ]
    for sparsity_kind in ("sparse", "very_sparse"):
        for storage, storage_options in (("saved", {}), ("drawn", _UNSAVED)):
            options, reads = (
                {"r": 3, sparsity_kind: True, **_SEED, **storage_options},
                storage == "drawn",
            )
            forms.append(
                Form(
                    f"randlora-{sparsity_kind}-{storage}",
                    "wide",
                    peft.RandLoraConfig,
                    options,
                    needs_base=reads,
                )
            )
    for name, options in (
        ("many", {"n_frequency": 40, "scaling": 30.0}),
        ("few", {"n_frequency": 2, "scaling": 60.0, "n_frequency_pattern": {"two": 3}}),
    ):
        config_class, fields = (
            peft.FourierFTConfig,
            {"needs_base": True, "tolerance": _FLOAT32_TOLERANCE},
        )
        forms += [
            Form(f"fourierft-{name}-linear", "linear", config_class, options, **fields),
            Form(f"fourierft-{name}-gpt2", "gpt2", config_class, {**options, **_FAN_IN}, **fields),
        ]
    pattern = {"sparsity": 0.8, "save_precomputed_indices": False}
    wave = {"n_frequency": 30, "scaling": 2.0, "proportional_parameters": True}
    tinylora_options = {"r": 2, "u": 5, "target_modules": ["lin"]}
    return [
        *forms,
        Form("supertuning", "linear", peft.SupertuningConfig, {"sparsity": 0.8, "r": 3}),
        *(
            Form(
                f"supertuning-recomputed-{top}",
                "linear",
                peft.SupertuningConfig,
                {**pattern, "select_top": top},
                needs_base=True,
            )
            for top in (True, False)
        ),
        Form("tinylora-embedding", "embedding", peft.TinyLoraConfig, {"r": 2, "u": 5}),
        Form(
            "tinylora-groups", "mlp", peft.TinyLoraConfig, {**tinylora_options, "weight_tying": 0.3}
        ),
        Form("waveft-proportional", "linear", peft.WaveFTConfig, wave, needs_base=True),
    ]


def _run(form: Form, model: torch.nn.Module, x: np.ndarray) -> np.ndarray:
    """Returns the model's output; FourierFT's forward needs float32 as torch's default."""
    if form.config_class is not peft.FourierFTConfig:
        return forward(model, x)
    with torch.no_grad():
        return model(torch.from_numpy(x)).numpy()


def _jaxmix_model(model: TorchNet, form: Form, folders: list[Path]) -> TorchNet:
    """Returns a copy of the model with jaxmix's weights."""
    params, composed_model = state(model), copy.deepcopy(model)
    with jax.enable_x64(True), uncompiled():
        base = params if form.needs_base else None
        adapters = [jaxmix.load(folder, base=base) for folder in folders]
        weights = jaxmix.compose(params, adapters, layout=layout(model))
    composed_model.load_state_dict(
        {name: torch.from_numpy(np.array(w)) for name, w in weights.items()}
    )
    return composed_model.eval()


def _check_saved_adapter_needs_no_torch(folder: Path, model: torch.nn.Module, out: Path) -> None:
    """Checks that a saved adapter contains the drawn arrays, and loads without torch and base."""
    params = state(model)
    with jax.enable_x64(True), pytest.MonkeyPatch.context() as patch:
        adapter = jaxmix.load(folder, base=params)
        jaxmix.save(adapter, out)
        patch.setitem(sys.modules, "torch", None)
        expected, loaded = (
            jaxmix.compose(params, loaded_adapter, layout=layout(model))
            for loaded_adapter in (adapter, jaxmix.load(out))
        )
        assert all(np.array_equal(expected[name], loaded[name]) for name in params)


# PEFT recommends saving what it draws.
@pytest.mark.one_of(2)
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
    if form.needs_base:
        _check_saved_adapter_needs_no_torch(folders[0], model, tmp_path / "saved")
    inner = adapted.base_model.model
    stacks = [
        (folders[:1], _run(form, adapted, x)),
        (folders, _run(form, nested(inner, folders[1:]), x)),
    ]
    errors = [
        difference(_run(form, _jaxmix_model(model, form, stack), x), truth)
        for stack, truth in stacks
    ]
    # Otherwise the comparison would prove nothing.
    assert min(difference(_run(form, model, x), truth) for _, truth in stacks) > 1e-2
    record(record_property, form, errors)
    assert max(errors) < form.tolerance, errors
