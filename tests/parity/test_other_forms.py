"""Forms that do not fit the table: BOFT's butterfly, PSOFT in float32, FRoD's bases, Bone."""

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import peft
import pytest
import torch
from peft.tuners.boft import layer as boft_layer
from safetensors.numpy import load_file, save_file
from torch import nn

import jaxmix

from ..goldens.nets import Layer, Net
from .harness import TorchNet, build, difference, exact, forward, inputs, save_adapter, state
from .layer_cases import NETS
from .nested import nested

Record = Callable[[str, object], None]


def composed(model: nn.Module, folder: Path, base: Any = None) -> dict[str, Any]:
    """Returns the model's weights with the folder's adapter composed in."""
    with jax.enable_x64(True):
        out = jaxmix.compose(state(model), [jaxmix.load(folder, base=base)])
        return {name: torch.from_numpy(np.array(leaf)) for name, leaf in out.items()}


def with_weights(model: TorchNet, weights: dict[str, Any]) -> nn.Module:
    """Returns a copy of the model with these weights."""
    copied = copy.deepcopy(model)
    copied.load_state_dict(weights)
    return copied.eval()


class _Blocks:
    """Replaces PEFT's CUDA kernel, which makes a block-diagonal matrix of each factor."""

    @staticmethod
    def apply(blocks: torch.Tensor) -> torch.Tensor:
        """Maps (factors, blocks, b, b) to (factors, n, n)."""
        return torch.stack([torch.block_diag(*factor) for factor in blocks])


@pytest.fixture
def butterfly(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Lets PEFT train several factors, for which it needs a CUDA kernel."""
    monkeypatch.setattr(boft_layer, "get_fbd_cuda", lambda: True)
    monkeypatch.setattr(boft_layer, "FastBlockDiag", _Blocks)
    yield


@pytest.mark.usefixtures("butterfly")
@pytest.mark.parametrize(
    ("net", "target", "block", "factors"),
    [("wide", "one", 2, 2), ("wide", "two", 6, 3), ("conv2d_point", "one", 2, 2)],
)
def test_boft_with_several_factors_matches(
    net: str, target: str, block: int, factors: int, tmp_path: Path
) -> None:
    """Rotations that each mix the previous blocks match, also after export."""
    model, x = build(NETS[net]), inputs(NETS[net])
    config = peft.BOFTConfig(
        target_modules=[target], boft_block_size=block, boft_n_butterfly_factor=factors
    )
    truth = forward(save_adapter(model, config, tmp_path / "peft", seed=1), x)
    ours = with_weights(model, composed(model, tmp_path / "peft"))
    assert difference(forward(ours, x), truth) < 1e-12
    assert difference(forward(model, x), truth) > 1e-2
    jaxmix.export_peft(jaxmix.load(tmp_path / "peft"), tmp_path / "out")
    with exact():
        reloaded = peft.PeftModel.from_pretrained(build(NETS[net]), str(tmp_path / "out")).eval()
    assert difference(forward(reloaded, x), truth) < 1e-12


PSOFT: dict[str, dict[str, Any]] = {
    "plain": {},
    "pissa": {"ab_svd_init": "pissa_init", "psoft_alpha": 5},
    "lowrank": {"psoft_svd": "lowrank", "random_seed": 3},
    "free": {"psoft_orth": False, "psoft_mag_a": False},
    "one vector": {"psoft_mag_b": False},
    "series": {"use_cayley_neumann": True},
    "bound": {"use_cayley_neumann": True, "num_cayley_neumann_terms": 7, "cayley_neumann_eps": 0.4},
}


@pytest.mark.parametrize("options", PSOFT.values(), ids=PSOFT)
def test_psoft_matches(options: dict[str, Any], tmp_path: Path, record_property: Record) -> None:
    """PSOFT needs a float32 base, so the adapter is made in float32 and run in float64.

    PEFT subtracts "pissa" from the base in float32, so the last bits depend on the machine.
    """
    x = inputs(NETS["linear"])
    model = build(NETS["linear"]).float()
    config = peft.PsoftConfig(target_modules=["one", "two"], r=3, **options)
    adapted = peft.get_peft_model(copy.deepcopy(model), config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, param in adapted.named_parameters():
            if param.requires_grad:
                std = 1.0 if "vector" in name else 0.3
                param.copy_(std * torch.randn(param.shape, generator=generator))
    adapted.save_pretrained(str(tmp_path))
    reloaded = peft.PeftModel.from_pretrained(copy.deepcopy(model), str(tmp_path)).double().eval()
    model = model.double()
    truth = forward(reloaded, x)
    ours = with_weights(model, composed(model, tmp_path, state(model)))
    error = difference(forward(ours, x), truth)
    record_property("parity_cases", 1)
    record_property("parity_worst", error)
    record_property("parity_type", ("PSOFT", "linear", [error]))
    assert error < (1e-6 if "ab_svd_init" in options else 1e-10)
    assert difference(forward(model, x), truth) > 1e-2


def test_frod_bases_are_shared(tmp_path: Path) -> None:
    """Layers of one kind share one V, which is written once."""
    net: Net = (
        Layer("layers.0.attn.proj", "linear", (8, 8)),
        Layer("layers.1.attn.proj", "linear", (8, 8)),
        Layer("layers.1.lin", "linear", (8, 6)),
    )
    model, x = build(net), inputs(net)
    config = peft.FrodConfig(target_modules=["proj", "lin"], progressbar=False, sparse_rate=0.1)
    truth = forward(save_adapter(model, config, tmp_path / "peft", seed=1), x)
    for folder in ("peft", "out"):
        actual = forward(with_weights(model, composed(model, tmp_path / folder)), x)
        assert difference(actual, truth) < 3e-6
        tensors = load_file(tmp_path / folder / "adapter_model.safetensors")
        assert {name for name in tensors if "frod_V" in name} == {
            "base_model.frod_V.attn_proj",
            "base_model.frod_V.lin",
        }
        if folder == "peft":
            jaxmix.export_peft(jaxmix.load(tmp_path / "peft"), tmp_path / "out")


def test_ln_tuning_matches(tmp_path: Path) -> None:
    """A norm with a bias and a norm without one match."""
    with exact():
        model: Any = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.RMSNorm(8))
    config = peft.LNTuningConfig(target_modules=["1", "2"])
    adapted = save_adapter(model, config, tmp_path / "peft", seed=1)
    x = np.random.default_rng(0).normal(size=(3, 6))
    ours = with_weights(model, composed(model, tmp_path / "peft"))
    assert difference(forward(ours, x), forward(adapted, x)) < 1e-14
    assert difference(forward(model, x), forward(adapted, x)) > 1e-2
    jaxmix.export_peft(jaxmix.load(tmp_path / "peft"), tmp_path / "out")
    with exact():
        reloaded = peft.PeftModel.from_pretrained(
            copy.deepcopy(model), str(tmp_path / "out")
        ).eval()
    assert difference(forward(reloaded, x), forward(adapted, x)) < 1e-14


TARGETS: dict[str, Any] = {"target_modules": ["one", "two"]}
OUTER: dict[str, tuple[peft.PeftConfig, float]] = {
    "ia3": (peft.IA3Config(feedforward_modules=["two"], **TARGETS), 1e-12),
    "boft": (peft.BOFTConfig(boft_block_size=4, **TARGETS), 1e-12),
    "road": (peft.RoadConfig(group_size=2, **TARGETS), 1e-12),
    "deft": (peft.DeftConfig(r=3, **TARGETS), 3e-6),
    "hira": (peft.HiraConfig(r=3, **TARGETS), 1e-12),
    "beft": (peft.BeftConfig(**TARGETS), 1e-12),
}


@pytest.mark.usefixtures("no_compiling")
@pytest.mark.parametrize("outer", OUTER)
def test_added_bias_is_transformed(outer: str, tmp_path: Path) -> None:
    """BOFT and DEFT transform an added bias but not the base's; IA3 and RoAd transform both."""
    model, x = build(NETS["linear"]), inputs(NETS["linear"])
    config, tolerance = OUTER[outer]
    lora = peft.LoraConfig(r=3, lora_alpha=5, lora_bias=True, **TARGETS)
    folders = [tmp_path / "lora", tmp_path / outer]
    for i, (adapter_config, folder) in enumerate(zip((lora, config), folders, strict=True)):
        save_adapter(model, copy.deepcopy(adapter_config), folder, seed=i)
    truth = forward(nested(model, folders), x)
    with jax.enable_x64(True):
        out = jaxmix.compose(state(model), [jaxmix.load(folder) for folder in folders])
        weights = {name: torch.from_numpy(np.array(leaf)) for name, leaf in out.items()}
    assert difference(forward(with_weights(model, weights), x), truth) < tolerance


@pytest.mark.parametrize("init_weights", [True, "bat"])
def test_bone_is_read_as_miss(init_weights: Any, tmp_path: Path) -> None:
    """Bone, which peft 0.19 renamed to MiSS, has the same tensors and formula."""
    model = build(NETS["linear"])
    options: dict[str, Any] = {
        "target_modules": ["one", "two"],
        "r": 2,
        "init_weights": init_weights,
    }
    save_adapter(model, peft.MissConfig(**options), tmp_path / "miss", seed=1)
    shutil.copytree(tmp_path / "miss", tmp_path / "bone")
    config = json.loads((tmp_path / "miss" / "adapter_config.json").read_text())
    bone_config = {k: v for k, v in config.items() if k not in ("miss_dropout", "mini_r")}
    bone_config["peft_type"] = "BONE"
    (tmp_path / "bone" / "adapter_config.json").write_text(json.dumps(bone_config))
    tensors = load_file(tmp_path / "miss" / "adapter_model.safetensors")
    renamed = {k.replace("miss_block", "bone_block"): v for k, v in tensors.items()}
    save_file(renamed, tmp_path / "bone" / "adapter_model.safetensors")
    miss, bone = (composed(model, tmp_path / name) for name in ("miss", "bone"))
    assert all(torch.equal(miss[name], bone[name]) for name in miss)
