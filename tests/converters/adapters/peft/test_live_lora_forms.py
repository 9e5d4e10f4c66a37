"""LoRA's rarer forms, written by PEFT, compared with PEFT's forward."""

import copy
from typing import Any

import numpy as np
import peft
import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora.config import BdLoraConfig, KasaConfig
from peft.tuners.lora.layer import Linear
from peft.tuners.lora.variants import QALoraLinearVariant
from torch import nn

import jaxmix
from jaxmix.errors import CheckpointError

from .folders import refused
from .made import MHA, Experts, Linears, composed, difference, llama, reload, run, save

BOTH: dict[str, Any] = {"r": 3, "lora_alpha": 5, "target_modules": ["one", "two"]}
Q: dict[str, Any] = {"r": 4, "target_modules": ["q_proj"]}
UP, DOWN = ["mlp.up"], ["mlp.up", "mlp.down"]
BD = {"target_modules_bd_a": ["one"], "target_modules_bd_b": ["two"], "nblocks": 2}


def experts(**options: Any) -> LoraConfig:
    """A config for parameters."""
    return LoraConfig(r=2, lora_alpha=3, target_modules=[], **options)


CASES: dict[str, tuple[nn.Module, LoraConfig, bool]] = {
    "attention": (MHA(), LoraConfig(r=2, target_modules=["attn"]), False),
    "attention rslora": (MHA(), LoraConfig(r=2, target_modules=["attn"], use_rslora=True), False),
    "experts": (Experts(), experts(target_parameters=UP), True),
    "experts, two": (Experts(), experts(target_parameters=DOWN), True),
    "experts, two told backwards": (Experts(), experts(target_parameters=DOWN[::-1]), True),
    "experts (in, out)": (Experts(True), experts(target_parameters=DOWN), True),
    "experts, ranks": (
        Experts(),
        experts(target_parameters=DOWN, rank_pattern={"mlp.up": 4}),
        True,
    ),
    "a parameter of a layer": (Linears(), experts(target_parameters=["one.weight"]), False),
    "block-diagonal": (
        Linears(),
        LoraConfig(**{**BOTH, "r": 4}, use_bdlora=BdLoraConfig(**BD)),
        False,
    ),
    "pooled": (Linears(), LoraConfig(**BOTH, use_qalora=True, qalora_group_size=4), True),
    "kasa": (Linears(), LoraConfig(**BOTH, kasa_config=KasaConfig()), False),
    "pissa": (Linears(), LoraConfig(**BOTH, init_lora_weights="pissa"), True),
    "olora": (Linears(), LoraConfig(**BOTH, init_lora_weights="olora"), True),
    "pissa rslora": (
        Linears(),
        LoraConfig(**BOTH, init_lora_weights="pissa", use_rslora=True),
        True,
    ),
    "pissa dora": (Linears(), LoraConfig(**BOTH, init_lora_weights="pissa", use_dora=True), True),
    "tokens": (llama(), LoraConfig(**Q, trainable_token_indices=[3, 7, 5]), False),
    "tokens by name": (
        llama(),
        LoraConfig(**Q, trainable_token_indices={"embed_tokens": [3, 7], "lm_head": [1]}),
        False,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_form_matches_pefts_forward(name, tmp_path):
    """The model with jaxmix's weights gives PEFT's outputs."""
    model, config, base = CASES[name]
    truth = run(save(model, config, tmp_path))
    assert difference(run(composed(model, tmp_path, base=base)), truth) < 3e-6
    assert difference(run(model), truth) > 1e-2


@pytest.mark.parametrize("name", [name for name, (_, _, base) in CASES.items() if base])
def test_base_is_required(name, tmp_path):
    """Ambiguous files need a base; a single parameter needs none, although its axes are unknown."""
    model, config, _ = CASES[name]
    save(model, config, tmp_path)
    message = refused(CheckpointError, tmp_path)
    assert "Pass the base: jaxmix.load(…, base=…)" in message


@pytest.mark.parametrize("tied", [True, False])
def test_tokens_of_a_tied_embedding(tied, tmp_path):
    """PEFT changes both sides of the tie, and so does the shared leaf."""
    model = llama(tie_word_embeddings=tied)
    for config in (
        LoraConfig(**Q, trainable_token_indices=[3, 7, 5]),
        peft.TrainableTokensConfig(target_modules=["embed_tokens"], token_indices=[3, 7, 5]),
    ):
        folder = tmp_path / str(config.peft_type)
        truth = run(save(model, config, folder))
        params = {name: x.numpy().copy() for name, x in model.state_dict().items()}
        if tied:
            del params["lm_head.weight"]
        weights = {k: np.array(v) for k, v in jaxmix.compose(params, jaxmix.load(folder)).items()}
        weights.setdefault("lm_head.weight", weights["model.embed_tokens.weight"])
        copied = copy.deepcopy(model)
        copied.load_state_dict({k: torch.from_numpy(w) for k, w in weights.items()})
        assert difference(run(copied), truth) < 3e-6


# A form that PEFT's config can't express again is written as the plain LoRA that it equals.
@pytest.mark.parametrize("name", CASES)
def test_written_again(name, tmp_path):
    """PEFT loads what export_peft writes, and computes the same."""
    model, config, base = CASES[name]
    truth = run(save(model, config, tmp_path / "in"))
    params = {name: x.numpy().copy() for name, x in model.state_dict().items()}
    adapter = jaxmix.load(tmp_path / "in", base=params if base else None)
    jaxmix.export_peft(adapter, tmp_path / "out")
    assert difference(run(reload(model, tmp_path / "out")), truth) < 3e-6


class _Both(nn.Module):
    """A layer next to experts."""

    def __init__(self) -> None:
        super().__init__()
        self.mixed = Experts()  # which sets the seed
        self.last = nn.Linear(7, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.mixed(x))


def test_parameter_without_its_module(tmp_path):
    """Any module with that parameter matches; the targeted layer next to it stays a layer."""
    options: dict[str, Any] = {"target_modules": ["last"], "target_parameters": ["up"]}
    truth = run(save(_Both(), LoraConfig(r=2, lora_alpha=3, **options), tmp_path))
    assert set(jaxmix.load(tmp_path, base=_weights(_Both())).sites) == {"mixed.mlp.up", "last"}
    assert difference(run(composed(_Both(), tmp_path, base=True)), truth) < 3e-6


def test_pooled_inputs_of_a_quantized_layer(tmp_path, monkeypatch):
    """QALoRA's own forward, which PEFT uses only for GPTQ's layers, on a plain one."""
    monkeypatch.setattr(Linear, "resolve_lora_variant", lambda *a, **k: QALoraLinearVariant())
    config = LoraConfig(r=3, target_modules=["one"], use_qalora=True, qalora_group_size=4)
    truth = run(save(Linears(), config, tmp_path))
    assert difference(run(composed(Linears(), tmp_path, base=True)), truth) < 3e-6
    assert difference(run(Linears()), truth) > 1e-2


def _weights(model: nn.Module) -> dict[str, np.ndarray]:
    return {name: x.numpy().copy() for name, x in model.state_dict().items()}


def test_blocks_matched_by_a_part_of_the_path(tmp_path):
    """PEFT searches for the strings anywhere in a module's path."""
    blocks = BdLoraConfig(target_modules_bd_a=["layers.0."], target_modules_bd_b=["layers.1."],
                          nblocks=2, match_strict=False)  # fmt: skip
    truth = run(save(llama(), LoraConfig(**Q, use_bdlora=blocks), tmp_path))
    assert difference(run(composed(llama(), tmp_path)), truth) < 3e-6
    assert difference(run(llama()), truth) > 1e-3
