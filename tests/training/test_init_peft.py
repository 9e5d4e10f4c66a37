"""What `jaxmix.init` makes beside what PEFT makes of the same config: structure, values, spread."""

# Updates are asked for the fields of their families.
# pyright: reportAttributeAccessIssue=false

import warnings
from dataclasses import fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import jaxmix
from jaxmix.families import parts_of
from jaxmix.training import init, trainable

from .init_rows import PARAMS, ROWS, Row

if any(find_spec(name) is None for name in ("torch", "peft", "transformers")):
    pytest.skip("parity with PEFT needs torch and peft", allow_module_level=True)

import peft
import torch
from peft.tuners.lora.config import KasaConfig
from torch import nn
from transformers.pytorch_utils import Conv1D

_CONFIGS: dict[str, Any] = {
    "lora": peft.LoraConfig,
    "dora": peft.LoraConfig,
    "kasa": peft.LoraConfig,
    "adalora": peft.AdaLoraConfig,
    "hira": peft.HiraConfig,
    "loha": peft.LoHaConfig,
    "lokr": peft.LoKrConfig,
    "oft": peft.OFTConfig,
    "boft": peft.BOFTConfig,
    "hra": peft.HRAConfig,
    "road": peft.RoadConfig,
    "ia3": peft.IA3Config,
    "psoft": peft.PsoftConfig,
    "shira": peft.ShiraConfig,
    "fourierft": peft.FourierFTConfig,
    "waveft": peft.WaveFTConfig,
    "c3a": peft.C3AConfig,
    "supertuning": peft.SupertuningConfig,
    "vera": peft.VeraConfig,
    "pvera": peft.PveraConfig,
    "randlora": peft.RandLoraConfig,
    "vblora": peft.VBLoRAConfig,
    "unilora": peft.UniLoraConfig,
    "tinylora": peft.TinyLoraConfig,
    "delora": peft.DeloraConfig,
    "gralora": peft.GraloraConfig,
    "miss": peft.MissConfig,
    "peanut": peft.PeanutConfig,
    "glora": peft.GloraConfig,
    "deft": peft.DeftConfig,
    "osf": peft.OSFConfig,
    "beft": peft.BeftConfig,
    "ln_tuning": peft.LNTuningConfig,
    "trainable_tokens": peft.TrainableTokensConfig,
}
_ALPHA = {
    "lora": "lora_alpha", "dora": "lora_alpha", "adalora": "lora_alpha", "kasa": "lora_alpha",
    "psoft": "psoft_alpha", "supertuning": "lora_alpha", "randlora": "randlora_alpha",
}  # fmt: skip
_MORE: dict[str, dict[str, Any]] = {
    "adalora": {"total_step": 10},
    "dora": {"use_dora": True},
    "kasa": {"kasa_config": KasaConfig()},
    "ia3": {"feedforward_modules": []},
    "unilora": {"save_indices": True},
}


_BIG = {"big.weight": np.random.default_rng(20).normal(size=(192, 256)).astype(np.float32)}


class _Net(nn.Module):
    """The modules of `PARAMS`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 16, 3)
        self.conv1 = nn.Conv1d(8, 16, 3, bias=False)
        self.emb = nn.Embedding(48, 24)
        self.gpt = Conv1D(48, 24)
        self.lin = nn.Linear(24, 48)
        self.more = nn.ModuleDict({"wide": nn.Linear(36, 24, bias=False)})
        self.norm = nn.LayerNorm(24)
        self.load_state_dict({name: torch.tensor(value) for name, value in PARAMS.items()})

    def prepare_inputs_for_generation(self, *_: Any) -> None:
        """What PEFT's models of language need."""


def _torch_model(row: Row, params: Any = PARAMS) -> Any:
    """The model that PEFT makes."""
    config = dict(_MORE.get(row.kind, {}))
    for word, value in row.words.items():
        named = {"rank": "init_r" if row.kind == "adalora" else "r"}.get(word, word)
        config[_ALPHA.get(row.kind, named) if word == "alpha" else named] = value
    if row.kind == "oft" and "rank" in row.words:
        config["oft_block_size"] = 0
    torch.manual_seed(0)
    net = _Net()
    if params is _BIG:
        net.add_module("big", nn.Linear(256, 192, bias=False))
        net.big.weight.data = torch.tensor(_BIG["big.weight"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = _CONFIGS[row.kind](target_modules=list(row.at), **config)
        return peft.get_peft_model(net, config)


def _theirs(row: Row, folder: Path, params: Any = PARAMS) -> tuple[Any, list[Any]]:
    """The adapter that PEFT makes, read by us, and what it trains."""
    model = _torch_model(row, params)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(str(folder))
    trained = [value for value in model.parameters() if value.requires_grad]
    return jaxmix.load(folder, name=row.kind, base=params), trained


# What a file says once for all sites, or of torch's own generator.
_SAID_ONCE: dict[str, Any] = {"transposed": False, "seed": None, "number": None}
# What is drawn: all else is what PEFT has.
_DRAWN: dict[str, set[str]] = {
    "LoRA": {"a"},
    "AdaLoRA": {"a", "b"},
    "KaSA": {"a", "d"},
    "HiRA": {"a"},
    "LoHa": {"b1", "a1", "b2", "a2", "t1", "t2"},
    "LoKr": {"x", "y", "t2"},
    "HRA": {"u"},
    "SHiRA": {"indices"},
    "FourierFT": {"spectrum", "indices"},
    "WaveFT": {"indices"},
    "C3A": {"kernels"},
    "SuperTuning": {"a"},
    "VeRA": {"a", "b"},
    "PVeRA": {"a", "b"},
    "RandLoRA": {"a", "b"},
    "VBLoRA": {"a", "b", "bank"},
    "UniLoRA": {"theta", "a_indices", "b_indices"},
    "TinyLoRA": {"projections", "v"},
    "DeLoRA": {"a"},
    "GraLoRA": {"a", "a_general"},
    "PEANuT": {"a", "encoders", "decoders"},
    "GLoRA": {"a", "b", "c"},
    "DEFT": {"p", "injected"},
}
# Where ours has another form than what our reader makes of PEFT's file.
_PARTED = ("pissa", "olora")


def _plain(update: Any) -> Any:
    """Without what a file says once for all sites."""
    gone = {one.name for one in fields(update)} & _SAID_ONCE.keys()
    return replace(update, **{name: _SAID_ONCE[name] for name in gone})


def _compared(ours: Any, theirs: Any) -> None:
    """The updates of one site."""
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    both = zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs), strict=True)
    for (path, leaf), other in both:
        one, two = np.asarray(leaf, np.float64), np.asarray(other, np.float64)
        assert one.shape == two.shape, path
        if path[0].name not in _DRAWN.get(ours.family, ()) or not two.any():
            np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-4, err_msg=str(path))
            continue
        assert not np.array_equal(one, two), path
        if one.size > 20:
            _spread_alike(one, two, str(path))


def _spread_alike(one: np.ndarray, two: np.ndarray, what: str) -> None:
    """Means and deviations by five of their own, and the bounds of what is uniform."""
    assert abs(one.std() / two.std() - 1) < 5 / one.size**0.5, (what, one.std(), two.std())
    assert abs(one.mean() - two.mean()) < 7 * two.std() / one.size**0.5, what
    if np.abs(two).max() < 1.8 * two.std():
        bounds = np.abs(one).max(), np.abs(two).max()
        assert abs(bounds[0] / bounds[1] - 1) < 0.02 + 20 / one.size, (what, bounds)


_KINDS = [row for row in ROWS if row.words.get("init_lora_weights") not in _PARTED]


@pytest.mark.parametrize("row", [row for row in _KINDS if row.kind != "osf"], ids=str)
def test_like_peft(row: Row, tmp_path: Path) -> None:
    """Structure, shapes, what is not drawn, how what is drawn spreads, how much is trained."""
    theirs, trained = _theirs(row, tmp_path)
    ours = init(row.kind, PARAMS, jax.random.key(3), target_modules=list(row.at), **row.words)
    assert set(ours.updates) == set(theirs.updates)
    for site, update in ours.updates.items():
        _compared(_plain(update), _plain(theirs.updates[site]))
    values, _ = trainable(ours)
    assert sum(x.size for x in jax.tree.leaves(values)) == sum(p.numel() for p in trained)


# Enough numbers that a spread is known to a few hundredths.
_WIDE = (
    Row("lora", {"rank": 16}),
    Row("lora", {"rank": 16, "init_lora_weights": "gaussian"}),
    Row("adalora", {"rank": 16}),
    Row("loha", {"rank": 16}),
    Row("lokr", {"rank": 8, "decompose_factor": 2}),
    Row("hra", {"rank": 16}),
    Row("fourierft", {"n_frequency": 4000}),
    Row("c3a", {"block_size": 16}),
    Row("c3a", {"block_size": 16, "init_weights": "gaussian"}),
    Row("c3a", {"block_size": 16, "init_weights": "kaiming_uniform"}),
    Row("vera", {"rank": 32}),
    Row("randlora", {"rank": 16}),
    Row("vblora", {"rank": 4, "vector_length": 32}),
    Row("tinylora", {"rank": 16, "u": 32, "init_weights": "uniform"}),
    Row("gralora", {"rank": 16}),
    Row("peanut", {"rank": 48, "depth": 1}),
    Row("glora", {"rank": 16}),
    Row("deft", {"rank": 32}),
)


@pytest.mark.parametrize("row", _WIDE, ids=str)
def test_spread(row: Row, tmp_path: Path) -> None:
    row = replace(row, at=("big",))
    theirs, _ = _theirs(row, tmp_path, _BIG)
    ours = init(row.kind, _BIG, jax.random.key(5), target_modules=["big"], **row.words)
    _compared(_plain(ours.updates["big"]), _plain(theirs.updates["big"]))


@pytest.mark.parametrize("how", _PARTED)
def test_out_of_the_base(how: str, tmp_path: Path) -> None:
    """PEFT's factors but for signs, and the base that it leaves."""
    row = Row("lora", {"rank": 4, "alpha": 6, "init_lora_weights": how})
    theirs = _torch_model(row)
    layer = theirs.base_model.model.lin
    a, b = (layer.lora_A.default.weight, layer.lora_B.default.weight)
    ours = init("lora", PARAMS, jax.random.key(0), target_modules=["lin"], **row.words)
    rebase, lora = parts_of(ours.updates["lin"])
    left = layer.base_layer.weight.detach().numpy()
    np.testing.assert_allclose(rebase.weight, left, atol=1e-4)
    np.testing.assert_allclose(lora.b @ lora.a, (b @ a).detach().numpy(), atol=1e-4)
    np.testing.assert_allclose(np.abs(lora.a), a.detach().abs().numpy(), atol=1e-4)
    assert lora.scale == 1.5
