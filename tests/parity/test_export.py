"""PEFT loads what jaxmix exports and computes the same outputs as for the original files."""

import copy
import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import peft
import pytest
import torch
from safetensors import safe_open

import jaxmix
from jaxmix.errors import UnsupportedError

from ..uncompiled import uncompiled
from .forms import FORMS
from .harness import (
    TOLERANCE,
    TorchNet,
    build,
    difference,
    exact,
    forward,
    inputs,
    layout,
    mixed_model,
    save_adapter,
    state,
)
from .layer_cases import CASES, MLP, NETS, Case
from .nested import Form, nested, save_all
from .truth import run_peft

Record = Callable[[str, object], None]
SINGLE_ADAPTER_CASES = [case for case in CASES if len(case.adapters) == 1]


def reexported(folder: Path, out: Path, model: Any, base: bool = False) -> Path:
    """Loads a PEFT folder, exports it, and checks that the export loads as the same adapter."""
    params = state(model)
    base_params = params if base else None
    with jax.enable_x64(True), uncompiled():
        adapter = jaxmix.load(folder, base=base_params)
        out_folder = jaxmix.export_peft(adapter, out)
        first, second = (
            jaxmix.compose(params, loaded, layout=layout(model))
            for loaded in (adapter, jaxmix.load(out_folder, base=base_params))
        )
        for name, leaf in first.items():
            # PEFT computes VB-LoRA's largest weights only in float32.
            np.testing.assert_allclose(second[name], leaf, rtol=1e-6, atol=1e-6)
    return out_folder


@pytest.mark.one_of(3)
@pytest.mark.parametrize("case", SINGLE_ADAPTER_CASES, ids=lambda case: case.name)
def test_exported_layer_matches(case: Case, tmp_path: Path, record_property: Record) -> None:
    """Every layer type and form of the six mixed types is exported."""
    truth = run_peft(case, tmp_path)
    folder = reexported(truth.folders[0], tmp_path / "out", truth.model)
    if case.truth == "single":
        with exact():
            model = peft.PeftModel.from_pretrained(build(truth.net), str(folder)).eval()
    else:
        model = mixed_model(truth.model, [folder])
        if case.truth == "merged":
            with exact():
                model = model.merge_and_unload()
    error = difference(forward(model, truth.x), truth.output)
    record_property("parity_cases", 1)
    record_property("parity_worst", error)
    assert error < TOLERANCE


# PEFT loads these only in torch's default dtype, which is float64 here.
FLOAT32_FORMS = [form for form in FORMS if form.name.startswith("vblora-topk")]
FLOAT64_FORMS = [form for form in FORMS if form not in FLOAT32_FORMS]
# Forms of one type differ in what is read, which `test_forms` compares; they are written alike.
FIRST = {form.name.partition("-")[0]: form for form in reversed(FLOAT64_FORMS)}
BY_TYPE = [
    pytest.param(
        form,
        id=form.name,
        marks=[] if form in FIRST.values() else pytest.mark.thorough,
    )
    for form in FLOAT64_FORMS
]


@pytest.mark.one_of(2)
@pytest.mark.parametrize("form", BY_TYPE)
def test_exported_form_matches(form: Form, tmp_path: Path, record_property: Record) -> None:
    """Every form of the other types is exported."""
    model, x = build(NETS[form.net]), inputs(NETS[form.net])
    folder = save_all(model, form, tmp_path)[1]
    truth = forward(nested(model, [folder]), x)
    out = reexported(folder, tmp_path / "out", model, form.needs_base)
    error = difference(forward(nested(model, [out]), x), truth)
    record_property("parity_cases", 1)
    record_property("parity_worst", error)
    assert error < form.tolerance


@pytest.mark.parametrize("form", FLOAT32_FORMS, ids=lambda form: form.name)
def test_exported_form_matches_in_float32(form: Form, tmp_path: Path) -> None:
    """PEFT loads the export in float32, as users do."""
    model, x = build(NETS[form.net]), inputs(NETS[form.net])
    folder = save_all(model, form, tmp_path)[1]
    truth = forward(nested(model, [folder]), x)
    out = reexported(folder, tmp_path / "out", model)
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(model).float(), str(out)).eval()
    with torch.no_grad():
        actual = loaded(torch.from_numpy(x).float()).double().numpy()
    assert difference(actual, truth) < 1e-5


CHAINS = [
    ("lora", "loha"),
    ("oft", "oft2"),
    ("oft", "oft2", "lora"),
    ("lora", "oft", "oft2", "loha"),
    ("shira", "lora", "oft"),
    ("adalora", "lokr", "oft", "lora"),
]


@pytest.mark.parametrize("chain", CHAINS, ids="->".join)
def test_exported_mix_loads_by_its_script(
    chain: tuple[str, ...], mlp: TorchNet, tmp_path: Path
) -> None:
    """The exported script loads the folders in order."""
    targets = ["layers.0.lin", "layers.1.lin", "layers.2.lin"]
    configs = {
        "lora": peft.LoraConfig(r=3, lora_alpha=5, target_modules=targets),
        "loha": peft.LoHaConfig(r=3, alpha=4, target_modules=targets),
        "lokr": peft.LoKrConfig(r=3, alpha=4, target_modules=targets),
        "adalora": peft.AdaLoraConfig(init_r=3, total_step=9, target_modules=targets),
        "oft": peft.OFTConfig(oft_block_size=4, target_modules=targets),
        "oft2": peft.OFTConfig(oft_block_size=2, target_modules=targets),
        "shira": peft.ShiraConfig(r=2, target_modules=targets),
    }
    adapters = []
    with jax.enable_x64(True), uncompiled():
        for i, name in enumerate(chain):
            save_adapter(mlp, configs[name], tmp_path / name, seed=i)
            adapters.append(jaxmix.load(tmp_path / name))
        out = jaxmix.export_peft(jaxmix.mix(*adapters), tmp_path / "out")
        weights = jaxmix.compose(state(mlp), adapters)
    composed_model = build(MLP)
    composed_model.load_state_dict(
        {name: torch.from_numpy(np.array(w)) for name, w in weights.items()}
    )
    x = inputs(MLP)
    with exact():
        loaded = runpy.run_path(str(out / "load_in_peft.py"))["load"](build(MLP))
    assert difference(forward(loaded, x), forward(composed_model.eval(), x)) < TOLERANCE


def test_unsupported_mix_is_refused(mlp: TorchNet, tmp_path: Path) -> None:
    """SHiRA over other types, and types outside PEFT's mixed model, are refused."""
    targets = {"target_modules": ["lin"]}
    for i, (name, config) in enumerate(
        {
            "lora": peft.LoraConfig(**targets),
            "shira": peft.ShiraConfig(r=2, **targets),
            "ia3": peft.IA3Config(feedforward_modules=[], **targets),
        }.items()
    ):
        save_adapter(mlp, config, tmp_path / name, seed=i)
    lora, shira, ia3 = (jaxmix.load(tmp_path / name) for name in ("lora", "shira", "ia3"))
    for unsupported, name in ((jaxmix.mix(lora, shira), "shira"), (jaxmix.mix(ia3, lora), "ia3")):
        with pytest.raises(UnsupportedError) as caught:
            jaxmix.export_peft(unsupported, tmp_path / "out")
        assert f"it does not support the type of '{name}' with others" in str(caught.value)
        assert "jaxmix.to_lora(mix, params)" in str(caught.value)


@pytest.mark.parametrize("net", ["linear", "gpt2", "conv2d", "embedding"])
def test_mix_exports_as_one_lora(net: str, tmp_path: Path) -> None:
    """A rotation, a LoRA and a DoRA are exported as one LoRA, with the errors of the SVD."""
    targets = {"target_modules": ["one", "two"]}
    fan_in = {"fan_in_fan_out": True} if net == "gpt2" else {}
    configs = [
        peft.LoraConfig(r=3, **targets, **fan_in),
        peft.LoraConfig(r=2, use_dora=True, **targets, **fan_in),
    ]
    if net not in ("gpt2", "conv2d"):
        configs.insert(0, peft.OFTConfig(oft_block_size=2, **targets))
    model, x = build(NETS[net]), inputs(NETS[net])
    for i, config in enumerate(configs):
        save_adapter(model, config, tmp_path / f"{i}", seed=i)
    params = state(model)
    with jax.enable_x64(True), uncompiled():
        mixed = jaxmix.mix(*(jaxmix.load(tmp_path / f"{i}") for i in range(len(configs))))
        weights = jaxmix.compose(params, mixed)
        lora, errors = jaxmix.to_lora(mixed, params, rank=None, with_errors=True)
        out = jaxmix.export_peft(lora, tmp_path / "out", errors=errors)
    composed_model = build(NETS[net])
    composed_model.load_state_dict(
        {name: torch.from_numpy(np.array(w)) for name, w in weights.items()}
    )
    with exact():
        loaded = peft.PeftModel.from_pretrained(build(NETS[net]), str(out)).eval()
    assert difference(forward(loaded, x), forward(composed_model.eval(), x)) < TOLERANCE
    with safe_open(out / "adapter_model.safetensors", "numpy") as file:
        assert json.loads(file.metadata()["errors"]).keys() == {"one", "two"}
