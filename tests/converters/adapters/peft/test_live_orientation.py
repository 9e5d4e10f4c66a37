"""The axis order of weights, compared with PEFT: Linear and Conv1D, with any flag."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import peft
import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    ClvpDecoderConfig,
    ClvpForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    Qwen2Config,
    Qwen2Model,
)
from transformers.pytorch_utils import Conv1D

import jaxmix
from jaxmix.converters.adapters.peft.kinds import PEFT_TYPES
from jaxmix.errors import LayoutError

from ....messages import full_text
from .made import llama, quiet, save

pytestmark = pytest.mark.usefixtures("no_compiling")

_SIZES = {"vocab_size": 20, "hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2}


class _Linears(nn.Module):
    """A block of an encoder with ViT's names; the projections are square."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.v_proj = nn.Linear(12, 12), nn.Linear(12, 12)
        self.fc1 = nn.Linear(12, 18)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc1(torch.tanh(self.v_proj(torch.tanh(self.q_proj(x)))))


class _Captioner(nn.Module):
    """Linear layers, then Conv1D: PEFT writes the flag of the last one."""

    def __init__(self, inner: int = 18) -> None:
        super().__init__()
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList([_Linears()])})
        config = GPT2Config(vocab_size=20, n_embd=12, n_inner=inner, n_layer=1, n_head=2)
        self.decoder = GPT2LMHeadModel(config)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inside = self.get_submodule("encoder.layers.0")(x)[:, None, :12]
        return self.decoder(inputs_embeds=inside).logits


def _gpt2(inner: int | None = None) -> nn.Module:
    sizes = {"vocab_size": 20, "n_embd": 12, "n_layer": 2, "n_head": 2, "n_positions": 8}
    return GPT2LMHeadModel(GPT2Config(**sizes, n_inner=inner))


def _bert() -> nn.Module:
    return BertModel(BertConfig(**_SIZES, intermediate_size=18, max_position_embeddings=8))


def _qwen() -> nn.Module:
    return Qwen2Model(Qwen2Config(**_SIZES, intermediate_size=18, num_key_value_heads=1))


def _clvp() -> nn.Module:
    """Its attention is linear, its MLP consists of Conv1D."""
    sizes = {"n_inner": 18, "max_position_embeddings": 8, "num_mel_attn_blocks": 1}
    return ClvpForCausalLM(ClvpDecoderConfig(**_SIZES, **sizes))


_MIXED = ["q_proj", "v_proj", "c_attn", "attn.c_proj"]
# A model and its targets; all have square weights whose biases do not show the axis order.
MODELS: dict[str, tuple[Any, list[str]]] = {
    "llama": (lambda: llama(num_key_value_heads=1), ["q_proj", "o_proj"]),
    "qwen2": (_qwen, ["q_proj", "o_proj"]),
    "bert": (_bert, ["query", "value"]),
    "clvp": (_clvp, ["q_proj", "c_fc"]),
    "captioner": (_Captioner, _MIXED),
    "gpt2": (_gpt2, ["attn.c_proj"]),
    "gpt2 of square MLPs": (lambda: _gpt2(12), ["c_proj", "c_fc"]),
}


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    """Computes in float64."""
    with jax.enable_x64(True):
        yield


def _weights(model: nn.Module) -> dict[str, np.ndarray]:
    return {name: x.detach().numpy().copy() for name, x in model.state_dict().items()}


def _model(make: Any) -> nn.Module:
    torch.manual_seed(0)
    model = make().double().eval()
    draws = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for param in model.parameters():
            param.copy_(torch.randn(param.shape, generator=draws, dtype=param.dtype))
    return model


def _merged(adapted: Any) -> dict[str, np.ndarray]:
    """The weights with which PEFT's forward computes."""
    with quiet():
        return _weights(adapted.merge_and_unload())


def _flagged(folder: Path, flag: bool) -> None:
    """Writes a flag into the config, as other versions and layer orders would."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fan_in_fan_out": flag}))


def _assert_same(ours: Any, truth: dict[str, np.ndarray], base: dict[str, np.ndarray]) -> None:
    changed = [name for name in truth if np.abs(truth[name] - base[name]).max() > 1e-6]
    assert changed
    for name, leaf in truth.items():
        output = np.asarray(ours[name])
        np.testing.assert_allclose(output, leaf, rtol=1e-9, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("flag", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_square_weights_ignore_the_files_flag(name: str, flag: bool, tmp_path: Path) -> None:
    """Square weights follow their modules, with either flag."""
    make, targets = MODELS[name]
    model = _model(make)
    config = peft.LoraConfig(r=2, lora_alpha=3, target_modules=targets)
    truth = _merged(save(model, config, tmp_path))
    _flagged(tmp_path, flag)
    base = _weights(model)
    ours = jaxmix.compose(base, jaxmix.load(tmp_path))
    _assert_same(ours, truth, base)


# Types with the flag, and their options. IA3's two kinds of vectors differ in shape.
TYPES: dict[str, Any] = {
    "adalora": lambda t: peft.AdaLoraConfig(init_r=2, total_step=1, target_modules=t),
    "deft": lambda t: peft.DeftConfig(r=2, target_modules=t),
    "dora": lambda t: peft.LoraConfig(r=2, use_dora=True, target_modules=t),
    "fourierft": lambda t: peft.FourierFTConfig(n_frequency=30, target_modules=t),
    "gralora": lambda t: peft.GraloraConfig(r=4, gralora_k=2, target_modules=t),
    "hira": lambda t: peft.HiraConfig(r=2, target_modules=t),
    "ia3": lambda t: peft.IA3Config(target_modules=t, feedforward_modules=[]),
    "ia3 inputs": lambda t: peft.IA3Config(target_modules=t, feedforward_modules=t),
    "pissa": lambda t: peft.LoraConfig(r=2, init_lora_weights="pissa", target_modules=t),
    "pvera": lambda t: peft.PveraConfig(r=2, target_modules=t),
    "randlora": lambda t: peft.RandLoraConfig(r=2, target_modules=t),
    "randlora drawn": lambda t: peft.RandLoraConfig(r=2, save_projection=False, target_modules=t),
    "tinylora": lambda t: peft.TinyLoraConfig(r=2, target_modules=t),
    "unilora": lambda t: peft.UniLoraConfig(r=2, theta_d_length=9, target_modules=t),
    "vblora": lambda t: peft.VBLoRAConfig(
        r=2, num_vectors=8, vector_length=2, save_only_topk_weights=False, target_modules=t
    ),
    "vera": lambda t: peft.VeraConfig(r=2, target_modules=t),
    "vera drawn": lambda t: peft.VeraConfig(r=2, save_projection=False, target_modules=t),
    "waveft": lambda t: peft.WaveFTConfig(n_frequency=30, target_modules=t),
}


@pytest.mark.parametrize("flag", [False, True])
@pytest.mark.parametrize("name", TYPES)
def test_types_follow_the_orientation_of_the_layer(name: str, flag: bool, tmp_path: Path) -> None:
    """Each type reads and cuts its factors by the layer, also if both kinds of layers share."""
    model = _model(_Captioner)
    model = model.float() if name == "pissa" else model  # PEFT's version does not accept float64
    with quiet():
        config = TYPES[name](_MIXED)
    truth = _merged(save(model, config, tmp_path))
    _flagged(tmp_path, flag)
    base = _weights(model)
    ours = jaxmix.compose(base, jaxmix.load(tmp_path, base=base))
    changed = {n: leaf for n, leaf in truth.items() if np.abs(leaf - base[n]).max() > 1e-6}
    assert len(changed) >= 4
    for leaf_name, leaf in truth.items():
        scale = np.abs(leaf).max()
        error = np.abs(np.asarray(ours[leaf_name]) - leaf).max() / scale
        assert error < 1e-5, leaf_name  # PEFT draws or multiplies some factors in float32


def test_all_types_with_the_flag_are_tested() -> None:
    """A new reader that uses the flag has to be added."""
    asking = {
        name for name, kind in PEFT_TYPES.items() if "fan_in_fan_out" in kind.fields.supported
    }
    tested = {name.partition(" ")[0].upper() for name in TYPES} | {"LORA", "FROD"}
    assert asking <= tested, asking - tested


def test_export_of_both_kinds_of_layers(tmp_path: Path) -> None:
    """PEFT corrects the flag for each layer, so one folder can hold both."""
    model = _model(_Captioner)
    config = peft.LoraConfig(r=2, lora_alpha=3, target_modules=_MIXED)
    truth = _merged(save(model, config, tmp_path / "in"))
    base = _weights(model)
    lora = jaxmix.to_lora(jaxmix.load(tmp_path / "in"), base, rank=2)
    jaxmix.export_peft(lora, tmp_path / "out")
    with quiet():
        reloaded = peft.PeftModel.from_pretrained(copy.deepcopy(model), str(tmp_path / "out"))
    _assert_same(_merged(reloaded), truth, base)


class _Square(nn.Module):
    """Two square layers that only their classes distinguish."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 6), Conv1D(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(torch.tanh(self.one(x)))


def test_ambiguous_square_layers(tmp_path: Path) -> None:
    """They are refused by name, and right once the layout states which are Conv1D."""
    model = _model(_Square)
    config = peft.LoraConfig(r=2, lora_alpha=3, target_modules=["one", "two"])
    truth = _merged(save(model, config, tmp_path))
    base = _weights(model)
    with pytest.raises(LayoutError) as caught:
        jaxmix.compose(base, jaxmix.load(tmp_path))
    message = str(caught.value)
    assert message.startswith(
        "weights whose orientation is unknown:\n  one: one.weight (6, 6)\n  two:"
    )
    assert "layout=jaxmix.Layout('mine', conv1d=r'.*\\.c_proj')." in message
    ours = jaxmix.compose(base, jaxmix.load(tmp_path), layout=jaxmix.Layout("mine", conv1d="two"))
    _assert_same(ours, truth, base)


class _Parameters(nn.Module):
    """Layers whose weights are adapted as parameters: a square one, with transposed namesakes."""

    def __init__(self) -> None:
        super().__init__()
        self.lin0, self.lin1 = nn.Linear(6, 9), nn.Linear(9, 6)
        self.block, self.c_proj = nn.ModuleDict({"c_proj": Conv1D(6, 6)}), Conv1D(9, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c_proj(self.block["c_proj"](self.lin1(torch.tanh(self.lin0(x)))))


@pytest.mark.parametrize(
    "names", [["lin0.weight"], ["lin0.weight", "c_proj.weight", "lin1.weight"], ["weight"]], ids=str
)
def test_parameters_of_two_axes(names: list[str], tmp_path: Path) -> None:
    """Their Δ = BA has the parameter's own axis order."""
    model = _model(_Parameters)
    config = peft.LoraConfig(r=2, lora_alpha=3, target_modules=[], target_parameters=names)
    truth = _merged(save(model, config, tmp_path))
    base = _weights(model)
    _assert_same(jaxmix.compose(base, jaxmix.load(tmp_path, base=base)), truth, base)
    if "." in names[0]:
        _assert_same(jaxmix.compose(base, jaxmix.load(tmp_path)), truth, base)


class _Stack(nn.Module):
    """Experts and a router, as in a mixture of experts, optionally of one shape."""

    def __init__(self, inner: int, width: int, in_first: bool) -> None:
        super().__init__()
        self.is_transposed = in_first
        self.up = nn.Parameter(torch.randn(3, *((6, inner) if in_first else (inner, 6))))
        self.down = nn.Parameter(torch.randn(3, *((width, 6) if in_first else (6, width))))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.up.sum() + self.down.sum()


class _Experts(nn.Module):
    def __init__(self, inner: int, width: int, in_first: bool = False) -> None:
        super().__init__()
        self.q_proj, self.gate = nn.Linear(6, 6), nn.Linear(6, 3)
        self.experts = _Stack(inner, width, in_first)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.gate(self.experts(self.q_proj(x)))


_ORDERS = [
    ["gate.weight", "down", "up"],
    ["up", "down", "gate.weight"],
    ["down", "gate.weight", "up"],
]
STACKS = {
    "of two shapes": (8, 4, False),
    "told by the orientation alone": (8, 8, False),
    "down is square": (12, 6, True),
    "of one shape": (6, 6, False),
}


@pytest.mark.parametrize("names", _ORDERS, ids=str)
@pytest.mark.parametrize("stack", STACKS)
def test_order_of_target_parameters(stack: str, names: list[str], tmp_path: Path) -> None:
    """PEFT writes them as a set; shapes and the model's order determine the wrappers."""
    model = _model(lambda: _Experts(*STACKS[stack]))
    config = peft.LoraConfig(
        r=2, lora_alpha=3, target_modules=["q_proj"], target_parameters=names,
        rank_pattern={r".*\.up": 4}, alpha_pattern={r".*\.up": 6},
    )  # fmt: skip
    truth = _merged(save(model, config, tmp_path))
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"target_parameters": names}))
    base = _weights(model)
    if stack == "of one shape":
        problem = (
            "the experts' matrices are square, (6, 6), and neither the file nor the base states "
            "whether they are stored as (out, in) or (in, out). Pass the base's folder with its "
            "config.json"
        )
        message = full_text(
            f"{tmp_path}/adapter_model.safetensors: factors that are not a valid LORA update:\n"
            f"  experts.up: {problem}\n  experts.down: {problem}\nWas the file edited, or saved "
            "before the shards of its factors were gathered?"
        )
        with pytest.raises(jaxmix.JaxmixError, match=message):
            jaxmix.load(tmp_path, base=base)
        return
    _assert_same(jaxmix.compose(base, jaxmix.load(tmp_path, base=base)), truth, base)
