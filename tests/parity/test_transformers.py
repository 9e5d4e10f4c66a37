"""Tiny Llama, GPT-2 and BERT with their usual target modules: the logits match in float64."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from peft import AdaLoraConfig, LoHaConfig, LoKrConfig, LoraConfig, OFTConfig, PeftConfig
from peft import ShiraConfig as Shira
from torch import nn

from .harness import TOLERANCE, difference, exact, forward, mixed_model, save_adapter
from .ours import jaxmix_model

VOCAB, TOKENS = 40, np.random.default_rng(0).integers(0, 40, size=(3, 9))
_COMMON: dict[str, Any] = {"vocab_size": VOCAB, "attn_implementation": "sdpa"}


def _llama(tied: bool = False) -> nn.Module:
    return hf.LlamaForCausalLM(
        hf.LlamaConfig(
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=32,
            tie_word_embeddings=tied,
            attention_bias=True,
            **_COMMON,
        )
    )


def _gpt2() -> nn.Module:
    return hf.GPT2LMHeadModel(
        hf.GPT2Config(
            n_embd=16,
            n_layer=2,
            n_head=4,
            n_positions=32,
            tie_word_embeddings=False,
            bos_token_id=1,
            eos_token_id=2,
            **_COMMON,
        )
    )


def _bert_config() -> hf.BertConfig:
    return hf.BertConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=32,
        tie_word_embeddings=False,
        **_COMMON,
    )


MODELS: dict[str, Callable[[], nn.Module]] = {
    "llama": _llama,
    "llama_tied": lambda: _llama(tied=True),
    "gpt2": _gpt2,
    "bert": lambda: hf.BertForMaskedLM(_bert_config()),
    "classifier": lambda: hf.BertForSequenceClassification(_bert_config()),
}


def _replace_norms_in_float32(model: nn.Module) -> None:
    """Replaces Llama's norms, which round to float32 and would hide differences."""
    for name, module in list(model.named_modules()):
        if type(module).__name__ == "LlamaRMSNorm":
            parent, _, last = name.rpartition(".")
            norm = nn.RMSNorm(
                model.get_parameter(f"{name}.weight").shape, eps=1e-6, dtype=torch.float64
            )
            model.get_submodule(parent).set_submodule(last, norm)


def model_with_large_weights(kind: str) -> nn.Module:
    """Returns the model with large weights; transformers' small ones would hide differences."""
    torch.manual_seed(7)
    with exact():
        model = MODELS[kind]().double().eval()
        _replace_norms_in_float32(model)
        for param in model.parameters():
            param.copy_(torch.randn_like(param) * 0.2 + (param.ndim == 1 and 0.9))
    return model


_LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
_LORA: dict[str, Any] = {"r": 3, "lora_alpha": 5}
_ADALORA: dict[str, Any] = {"init_r": 3, "lora_alpha": 4, "total_step": 10}
_FAN_IN = {"fan_in_fan_out": True}
Spec = tuple[type[PeftConfig], dict[str, Any]]


def _lora(targets: Any, **options: Any) -> Spec:
    return LoraConfig, {"target_modules": targets, **_LORA, **options}


def _loha(targets: Any, **options: Any) -> Spec:
    return LoHaConfig, {"target_modules": targets, "r": 2, "alpha": 3, **options}


def _lokr(targets: Any, **options: Any) -> Spec:
    return LoKrConfig, {"target_modules": targets, "r": 2, "alpha": 3, **options}


def _ada(targets: Any, **options: Any) -> Spec:
    return AdaLoraConfig, {"target_modules": targets, **_ADALORA, **options}


def _oft(targets: Any, **options: Any) -> Spec:
    return OFTConfig, {"target_modules": targets, "oft_block_size": 4, **options}


_QV, _GPT = ["q_proj", "v_proj"], ["c_attn", "c_proj", "c_fc"]
_EMB = ["embed_tokens", "lm_head"]
_BERT = ["query", "key", "value", "dense"]

CASES: dict[str, tuple[str, list[Spec]]] = {
    "llama-lora-all": ("llama", [_lora(_LAYERS, use_rslora=True)]),
    "llama-dora-all_linear": ("llama", [_lora("all-linear", use_dora=True)]),
    "llama-five": ("llama", [_lora(_LAYERS), _loha(_QV), _lokr(_LAYERS), _ada(_QV), _oft(_LAYERS)]),
    "llama-five_back": (
        "llama",
        [_oft(_LAYERS), _ada(_QV), _lokr(_LAYERS), _loha(_QV), _lora(_LAYERS)],
    ),
    "llama-six": (
        "llama",
        [
            (Shira, {"target_modules": _LAYERS, "r": 1}),
            _oft(_QV),
            _oft(_LAYERS),
            _lora(_QV),
            _loha(_LAYERS),
        ],
    ),
    "llama-oft_apart": ("llama", [_oft(_LAYERS), _lora(_QV), _oft(_LAYERS, oft_block_size=2)]),
    "llama-embedding": ("llama", [_lora([*_EMB, "q_proj"]), _oft(["embed_tokens", "v_proj"])]),
    "llama-embedding_oft2": ("llama", [_oft(["embed_tokens"]), _oft(["embed_tokens", "q_proj"])]),
    "llama-embedding_dora": ("llama", [_lora(["embed_tokens"], use_dora=True), _lokr(_LAYERS)]),
    "llama-one_layer": ("llama", [_lora(_LAYERS, layers_to_transform=[1]), _loha(_LAYERS)]),
    "llama-patterns": (
        "llama",
        [
            _lora(
                _LAYERS, rank_pattern={"layers.0.self_attn.q_proj": 5}, alpha_pattern={"o_proj": 9}
            )
        ],
    ),
    "llama-save_head": ("llama", [_lora(_QV, modules_to_save=["lm_head"]), _oft(_QV)]),
    "llama-bias_all": ("llama", [_lora(_QV, bias="all"), _loha(_LAYERS)]),
    "llama-regex": ("llama", [_lora(r".*\.1\..*(up|down)_proj")]),
    "llama_tied-mix": ("llama_tied", [_lora(_LAYERS), _oft(_LAYERS), _loha(_QV)]),
    "gpt2-lora": ("gpt2", [_lora(_GPT, **_FAN_IN)]),
    "gpt2-dora_adalora": (
        "gpt2",
        [_lora(_GPT, use_dora=True, **_FAN_IN), _ada(["c_attn"], **_FAN_IN)],
    ),
    "gpt2-adalora_lora": ("gpt2", [_ada(_GPT, **_FAN_IN), _lora(_GPT, lora_bias=True, **_FAN_IN)]),
    "gpt2-embeddings": (
        "gpt2",
        [_lora(["wte", "wpe"]), _oft(["wte"]), _lora(["c_fc", "wte"], **_FAN_IN)],
    ),
    "gpt2-head": ("gpt2", [_loha(["lm_head"]), _oft(["lm_head"]), _lora(["c_attn"], **_FAN_IN)]),
    "bert-lora_oft": ("bert", [_lora(_BERT), _oft(_BERT)]),
    "bert-five": ("bert", [_loha(_BERT), _oft(_BERT), _lokr(_BERT), _ada(_BERT), _lora(_BERT)]),
    "bert-embeddings": (
        "bert",
        [_lora(["word_embeddings", "query"]), _oft(["word_embeddings", "position_embeddings"])],
    ),
    "bert-dora": ("bert", [_lora(["query", "value"], use_dora=True), _loha(["query"])]),
    "classifier-save": (
        "classifier",
        [_lora(["query"], task_type="SEQ_CLS"), _oft(["dense"])],
    ),
}


@pytest.mark.one_of(3)
@pytest.mark.parametrize("name", CASES)
def test_logits_match_peft(
    name: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """With jaxmix's weights, the original model gives the logits of PEFT's mixed model."""
    kind, adapters = CASES[name]
    model, folders = model_with_large_weights(kind), []
    for i, (config_class, options) in enumerate(adapters):
        folders.append(tmp_path / f"{i}")
        save_adapter(model, config_class(**options), folders[-1], seed=i)
    truth = forward(mixed_model(model, folders), TOKENS)
    error = difference(forward(jaxmix_model(model, folders), TOKENS), truth)
    record_property("parity_cases", 1)
    record_property("parity_worst", error)
    assert error < TOLERANCE
    assert difference(forward(model, TOKENS), truth) > 1e-2
