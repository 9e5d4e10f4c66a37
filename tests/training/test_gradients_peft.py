"""Gradients match PEFT's for the same adapter and batch, for each of its types and for mixes.

An adapter whose arrays are the gradients is written as a PEFT folder, and the folder's tensors are
compared with the gradients of PEFT's parameters. This works because writing only moves numbers.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("peft")
pytest.importorskip("transformers")

import peft
import torch
from safetensors.numpy import load_file

import jaxmix
from jaxmix.affine import Base
from jaxmix.families import PSOFT, LoRA
from jaxmix.families import oft as oft_family
from jaxmix.operators import rotations
from jaxmix.training import trainable

from ..parity.harness import build, exact, inputs, mixed_model, save_adapter, state
from ..parity.layer_cases import NETS
from ..parity.nested import Form
from ..uncompiled import uncompiled
from .peft_forms import CASES, CONSTANT_IN_PEFT, FLOAT32

Record = Callable[[str, object], None]

NET = NETS["linear"]
X = inputs(NET, batch=3)
TARGET = np.random.default_rng(5).normal(size=(3, 6))


# PSOFT's files have no A and B, so it cannot be exported.
PSOFT_NAMES = {"R.weight": "rotation", "R.vector_a": "inputs", "R.vector_b": "outputs"}


def run(params: Any, x: Any) -> Any:
    """Returns a scalar of the network's output, computed in JAX."""
    for name in ("one", "two"):
        x = jnp.tanh(x) if name == "two" else x
        x = x @ params[f"{name}.weight"].T + params[f"{name}.bias"][None]
    return jnp.sum(x * TARGET)


def net_loss(values: Any, rebuild: Any, params: Any) -> Any:
    """Returns the network's loss for the trained values, unmerged."""
    return jaxmix.factored(run)(jaxmix.attach(params, rebuild(values)), X)


def peft_gradients(model: Any, names: tuple[str, ...] = ("default",)) -> list[dict[str, Any]]:
    """Returns the gradients of each adapter's parameters by their names in PEFT's file."""
    with torch.enable_grad():
        out = model(torch.from_numpy(X))
        (out * torch.from_numpy(TARGET)).sum().backward()
    # A tensor shared by sites has one name in the file, and several in the model.
    gradients = {p.data_ptr(): p.grad for p in model.parameters() if p.grad is not None}
    files = [peft.get_peft_model_state_dict(model, adapter_name=name) for name in names]
    is_mixed = isinstance(model, peft.PeftMixedModel)
    return [
        {
            # A wrapper inside another wrapper has a longer name.
            key.replace("base_layer.", "") if is_mixed else key: gradients[x.data_ptr()].numpy()
            for key, x in file.items()
            if x.data_ptr() in gradients
        }
        for file in files
    ]


def save_with_peft(form: Form, folder: Path) -> Any:
    """Saves an adapter of this form, and returns PEFT's model."""
    model = build(NET)
    if form.config_class is not peft.PsoftConfig:
        return save_adapter(model, form.config(), folder, seed=3, draw=form.draw)
    # PEFT's PSOFT does not accept a float64 base.
    save_adapter(model.float(), form.config(), folder, seed=3)
    return peft.PeftModel.from_pretrained(
        build(NET).float(), str(folder), is_trainable=True
    ).double()


def arrays_by_peft_key(gradients: Any, folder: Path) -> dict[str, np.ndarray]:
    """Returns an adapter's arrays by the keys of PEFT's file."""
    if isinstance(next(iter(gradients.updates.values())), PSOFT):
        return {
            f"base_model.model.{site}.psoft_{name}": np.asarray(getattr(update, field))
            for site, update in gradients.updates.items()
            for name, field in PSOFT_NAMES.items()
        }
    numbers = jax.tree.map(lambda x: np.asarray(x) if isinstance(x, jax.Array) else x, gradients)
    jaxmix.export_peft(numbers, folder)
    return load_file(folder / "adapter_model.safetensors")


def prefixed(adapter: jaxmix.Adapter, name: str) -> jaxmix.Adapter:
    """Returns the adapter with a prefix at each site, for a separate copy of the network."""
    return jaxmix.Adapter({f"{name}/{s}": u for s, u in adapter.updates.items()}, name=name)


@pytest.fixture(scope="module")
def gradient_pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Any]]:
    """Returns PEFT's gradients and ours by form; ours from one backward pass."""
    root = tmp_path_factory.mktemp("gradients")
    theirs: dict[str, Any] = {}
    parts: list[jaxmix.Adapter] = []
    with exact(), jax.enable_x64(True), uncompiled():
        params = state(build(NET))
        for form in CASES:
            model = save_with_peft(form, root / form.name)
            # FourierFT's forward needs torch's default dtype.
            is_float64 = form.config_class is not peft.FourierFTConfig
            torch.set_default_dtype(torch.float64 if is_float64 else torch.float32)
            theirs[form.name] = peft_gradients(model)[0]
            torch.set_default_dtype(torch.float64)
            adapter = jaxmix.load(root / form.name, base=params if form.needs_base else None)
            parts.append(prefixed(adapter, form.name))
        all_params = {f"{form.name}/{n}": x for form in CASES for n, x in params.items()}

        def loss(leaves: Any) -> Any:
            nets = [{n: leaves[f"{form.name}/{n}"] for n in params} for form in CASES]
            return sum(run(net, X) for net in nets)

        def total_loss(values: Any, rebuild: Any) -> Any:
            return jaxmix.factored(loss)(jaxmix.attach(all_params, rebuild(values)))

        values, rebuild = trainable(jaxmix.Mix(tuple(parts)))
        for name, gradients in theirs.items():
            # jaxmix trains as many numbers as PEFT; a shared one counts once.
            ours = sum(x.size for x in jax.tree.leaves(values[name]))
            assert ours == sum(x.size for x in gradients.values()), name
        gradients = rebuild(jax.jit(jax.grad(total_loss))(values, rebuild))
        ours = {}
        for part in gradients.parts:
            updates = {site.split("/")[1]: update for site, update in part.updates.items()}
            ours[part.name] = arrays_by_peft_key(
                jaxmix.Adapter(updates), root / f"{part.name} slopes"
            )
    return {name: (theirs[name], ours[name]) for name in theirs}


def errors(theirs: dict[str, Any], ours: dict[str, Any]) -> dict[str, float]:
    """Returns each tensor's largest difference, relative to its largest number."""
    assert theirs
    pairs = {key: (ours[key], gradient) for key, gradient in theirs.items()}
    assert {key: (x.shape, y.shape) for key, (x, y) in pairs.items() if x.shape != y.shape} == {}
    return {key: float(np.abs(x - y).max() / np.abs(y).max()) for key, (x, y) in pairs.items()}


@pytest.mark.parametrize("name", [form.name for form in CASES if form.name not in CONSTANT_IN_PEFT])
def test_gradients_match_peft(
    name: str, gradient_pairs: dict[str, tuple[Any, Any]], record_property: Record
) -> None:
    """Every parameter that PEFT trains has PEFT's gradient."""
    differences = errors(*gradient_pairs[name])
    record_property("gradient", (name, max(differences.values())))
    assert max(differences.values()) < (1e-5 if name in FLOAT32 else 1e-10), differences


# ---------------------------------------------------------------- constants in PEFT


def hold_constants(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes DoRA's norm, and the shrinking of `coft`, constants for the gradient."""
    rescaling, constant = LoRA._rescaling, jax.lax.stop_gradient

    def by_constant_norm(self: LoRA, base: Base) -> Any:
        return rescaling(replace(self, a=constant(self.a), b=constant(self.b)), base)

    def in_place(q: Any, bound: Any) -> Any:
        return q + constant(rotations.clip_norm(q, bound) - q)

    monkeypatch.setattr(LoRA, "_rescaling", by_constant_norm)
    monkeypatch.setattr(oft_family, "clip_norm", in_place)


def test_gradients_match_peft_with_its_constants(
    gradient_pairs: dict[str, tuple[Any, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """All gradients match if the same values are constants; magnitudes match in any case."""
    relative_errors = {name: errors(*gradient_pairs[name]) for name in CONSTANT_IN_PEFT}
    for name, differences in relative_errors.items():
        for key, error in differences.items():
            assert (error < 1e-10) == ("magnitude" in key), (name, key, error)
    hold_constants(monkeypatch)
    for form in CASES:
        if form.name in CONSTANT_IN_PEFT:
            with exact(), jax.enable_x64(True), uncompiled():
                save_with_peft(form, tmp_path / form.name)
                values, rebuild = trainable(jaxmix.load(tmp_path / form.name))
                gradient = jax.jit(jax.grad(net_loss))(values, rebuild, state(build(NET)))
                ours = arrays_by_peft_key(rebuild(gradient), tmp_path / f"{form.name} gradients")
            differences = errors(gradient_pairs[form.name][0], ours)
            assert max(differences.values()) < 1e-10, differences


# ---------------------------------------------------------------- mixes

MIXES: dict[str, tuple[str, ...]] = {
    "lora and oft": ("lora", "oft"),
    "oft and lora": ("oft", "lora"),
    "loha and lokr": ("loha", "lokr"),
    "adalora, oft, loha": ("adalora", "oft", "loha"),
}


@pytest.mark.parametrize("names", MIXES.values(), ids=MIXES)
def test_mix_gradients_match_peft(
    names: tuple[str, ...], tmp_path: Path, record_property: Record
) -> None:
    """Gradients match PEFT's mixed model; training one adapter alone gives the same."""
    forms_by_name = {form.name: form for form in CASES}
    folders = [tmp_path / name for name in names]
    with exact(), jax.enable_x64(True), uncompiled():
        params = state(build(NET))
        for i, (name, folder) in enumerate(zip(names, folders, strict=True)):
            save_adapter(build(NET), forms_by_name[name].config(), folder, seed=i)
        expected = peft_gradients(
            mixed_model(build(NET), folders), tuple(f"adapter{i}" for i in range(len(names)))
        )
        mixed = jaxmix.mix(*map(jaxmix.load, folders))

        for only in (None, (names[-1],)):
            values, rebuild = trainable(mixed, only=only)
            gradients = rebuild(jax.jit(jax.grad(net_loss))(values, rebuild, params)).parts
            for i in range(len(names)):
                if only and names[i] not in only:
                    continue
                differences = errors(
                    expected[i], arrays_by_peft_key(gradients[i], tmp_path / f"{i} {only}")
                )
                record_property(
                    "gradient", (f"{names[i]} of {' → '.join(names)}", max(differences.values()))
                )
                assert max(differences.values()) < 1e-10, differences
