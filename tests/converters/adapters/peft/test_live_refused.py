"""Refused folders that PEFT wrote: the reason, the remedy, and that the remedy works."""

import json
import re
import sys
from typing import Any

import peft
import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora.config import ArrowConfig
from safetensors.torch import load_file, save_file

import jaxmix
from jaxmix.errors import CheckpointError, UnsupportedError

from ....messages import full_text
from .folders import refused
from .made import Experts, Linears, composed, difference, llama, quiet, run, save

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
Q: dict[str, Any] = {"r": 4, "target_modules": ["q_proj"]}
LM: dict[str, Any] = {"task_type": "CAUSAL_LM"}


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (lambda: peft.PromptTuningConfig(num_virtual_tokens=2, **LM), "Keep it in PEFT."),
        (lambda: peft.PrefixTuningConfig(num_virtual_tokens=2, **LM), "Keep it in PEFT."),
        (lambda: peft.PromptEncoderConfig(num_virtual_tokens=2, **LM), "Keep it in PEFT."),
        (lambda: peft.CPTConfig(cpt_token_ids=[1], cpt_mask=[1], cpt_tokens_type_mask=[1], **LM),
         "Keep it in PEFT."),
        (lambda: peft.AdaptionPromptConfig(adapter_len=1, adapter_layers=1, **LM), "Keep it in"),
        (lambda: peft.PolyConfig(target_modules=["q_proj"]), "mix them with strengths."),
        (lambda: peft.XLoraConfig(hidden_size=4, adapters={"a": "b"}), "mix them with strengths."),
        (lambda: peft.LilyConfig(r=2, target_modules=["q_proj"]), "mix them with strengths."),
    ],
)  # fmt: skip
def test_unsupported_types_are_refused(config, reason, tmp_path):
    """Prompts, routers and unknown families are recognized by the config alone."""
    with quiet():
        options = config()
        options.save_pretrained(str(tmp_path))
    message = refused(UnsupportedError, tmp_path)
    assert f"peft_type {options.peft_type.value!r} is refused: " in message and reason in message


@pytest.mark.parametrize(
    ("options", "field", "reason", "todo"),
    [
        ({"alora_invocation_tokens": [3], **LM}, "alora_invocation_tokens = [3]",
         "acts only from a certain token on, which no fixed weight computes", "Keep it in PEFT."),
        ({"layer_replication": [[0, 2], [1, 3]]}, "layer_replication = [[0, 2], [1, 3]]",
         "the sites are those of another, deeper model", "Create that base by copying its layers"),
    ],
    ids=lambda value: value.split()[0] if isinstance(value, str) else "",
)  # fmt: skip
def test_unsupported_fields_are_refused(options, field, reason, todo, tmp_path):
    """Each unsupported field of a LoRA on a Llama is refused."""
    save(llama(), LoraConfig(**Q, **options), tmp_path)
    message = refused(UnsupportedError, tmp_path)
    assert f"\n  {field}" in message and reason in message and todo in message


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"arrow_config": ArrowConfig()}, "arrow_config"),
        ({"megatron_config": {"a": 1}}, "megatron"),
    ],
)
def test_fields_that_need_a_special_setup(options, field, tmp_path):
    """Folders with these fields need other adapters, or Megatron, to be saved."""
    LoraConfig(**Q, **options).save_pretrained(str(tmp_path))
    message = refused(UnsupportedError, tmp_path)
    assert f"\n  {field}" in message
    assert "Load the individual adapters" in message or "Gather the parts" in message


KEY = "base_model.model.mlp"
ONE_TARGET = (
    "factors that are not a valid LORA update:\n  mlp: lora_A.weight has shape (6, 12), expected "
    "(2, ·); lora_B.weight has shape (10, 6), expected (·, 2) with the config's rank 2\nWas the "
    "file edited, or saved before the shards of its factors were gathered?"
)
TWO_TARGETS = (
    f"keys that jaxmix can't use in a LORA adapter:\n  {KEY}.lora_A.weight: the same as "
    f"{KEY}.base_layer.lora_A.weight; keep one of the two\n  {KEY}.lora_B.weight: the same as "
    f"{KEY}.base_layer.lora_B.weight; keep one of the two\nExpected <module>.<parameter> with one "
    "of lora_A.weight, lora_B.weight, lora_B.bias, lora_diag, lora_embedding_A, lora_embedding_B, "
    "lora_magnitude_vector, or leaves of modules_to_save, as save_pretrained writes them."
)


@pytest.mark.parametrize(
    ("targets", "problem"),
    [(["mlp.up"], ONE_TARGET), (["mlp.up", "mlp.down"], TWO_TARGETS)],
)
def test_target_parameters(targets, problem, tmp_path):
    """Without the field in the config, keys and shapes show that parameters were targeted."""
    save(Experts(), LoraConfig(r=2, target_modules=[], target_parameters=targets), tmp_path)
    values = json.loads((tmp_path / CONFIG).read_text()) | {"target_parameters": None}
    (tmp_path / CONFIG).write_text(json.dumps(values))
    message = full_text(f"{tmp_path}/adapter_model.safetensors: {problem}")
    with pytest.raises(jaxmix.JaxmixError, match=message):
        jaxmix.load(tmp_path)


def test_grouped_convolution(tmp_path):
    """PEFT's LoRA is not a weight of such a convolution."""
    net = torch.nn.Sequential(torch.nn.Conv2d(4, 6, 3, groups=2))
    save(net, LoraConfig(r=4, target_modules=["0"]), tmp_path)
    message = refused(UnsupportedError, tmp_path)
    assert "0: lora_B has 2 of 4 ranks" in message and "Train it without that layer" in message


def test_conversion_of_a_pickle(tmp_path, monkeypatch):
    """The commands in the error produce a folder that loads; torch reads the original."""
    config = LoraConfig(target_modules=["one", "two"])
    adapted = save(Linears(), config, tmp_path, safe_serialization=False)
    assert difference(run(composed(Linears(), tmp_path)), run(adapted)) < 2e-6
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "torch", None)
        message = refused(CheckpointError, tmp_path)
    assert (
        f"{tmp_path} has adapter_model.bin but no {WEIGHTS}. jaxmix does not read pickles"
        in message
    )
    lines = re.findall(r"^  (.+)$", message, re.MULTILINE)
    assert len(lines) == 2
    import safetensors.torch

    exec("\n".join(lines), {"torch": torch, "safetensors": safetensors})
    assert difference(run(composed(Linears(), tmp_path)), run(adapted)) < 2e-6


def test_layers_repeated_by_hand(tmp_path):
    """The remedy for layer_replication gives PEFT's forward."""
    layers = [0, 1, 1, 2]
    config = LoraConfig(r=2, target_modules=["v_proj"], layer_replication=[(0, 2), (1, 3)])
    truth = run(save(llama(), config, tmp_path))
    values = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps(values | {"layer_replication": None}))
    deeper, shallow = llama(num_hidden_layers=4), llama()
    for i, layer in enumerate(layers):
        deeper.model.layers[i].load_state_dict(shallow.model.layers[layer].state_dict())
    deeper.model.embed_tokens, deeper.lm_head = shallow.model.embed_tokens, shallow.lm_head
    deeper.model.norm = shallow.model.norm
    assert difference(run(composed(deeper, tmp_path)), truth) < 1e-5
    assert difference(run(deeper), truth) > 1e-3


def test_wrapper_next_to_saved_modules(tmp_path):
    """With save_embedding_layers PEFT writes each saved embedding three times."""
    config = LoraConfig(**Q, modules_to_save=["lm_head", "embed_tokens"])
    truth = run(save(llama(), config, tmp_path, save_embedding_layers=True))
    keys = set(load_file(tmp_path / WEIGHTS))
    assert {
        f"base_model.model.lm_head.{m}.weight" for m in ("modules_to_save", "original_module")
    } < keys
    assert difference(run(composed(llama(), tmp_path)), truth) < 1e-5


@pytest.mark.parametrize("use_dora", [False, True])
@pytest.mark.parametrize("targets", [["q_proj"], ["embed_tokens", "lm_head"]])
def test_copies_of_the_base(targets, use_dora, tmp_path):
    """PEFT applies them below the adapter, and DoRA's norm reads them."""
    config = LoraConfig(r=4, target_modules=targets, use_dora=use_dora)
    save(llama(), config, tmp_path, save_embedding_layers=True)
    tensors = load_file(tmp_path / WEIGHTS)
    copies = [key for key in tensors if "lora_" not in key]
    assert len(copies) == 2 and all(("base_layer" in k) == (len(targets) == 2) for k in copies)
    for key in copies:
        tensors[key] = tensors[key] + 0.01 * torch.randn(tensors[key].shape)
    save_file(tensors, tmp_path / WEIGHTS)
    with quiet():
        truth = run(peft.PeftModel.from_pretrained(llama(), str(tmp_path)).eval())
    assert difference(run(composed(llama(), tmp_path)), truth) < 1e-5


@pytest.mark.parametrize(
    "where",
    [{"modules_to_save": ["embed_tokens"]}, {"target_modules": ["q_proj", "embed_tokens"]}],
    ids=["saved", "targeted"],
)
def test_tied_by_peft(where, tmp_path):
    """With ensure_weight_tying the file has both sides, so untied params get PEFT's forward."""
    config = LoraConfig(**{**Q, **where}, ensure_weight_tying=True)
    truth = run(save(llama(tie_word_embeddings=True), config, tmp_path))
    assert {"model.embed_tokens", "lm_head"} < set(jaxmix.load(tmp_path).sites)
    untied = llama()
    untied.load_state_dict(llama(tie_word_embeddings=True).state_dict())
    assert difference(run(composed(untied, tmp_path)), truth) < 1e-5
