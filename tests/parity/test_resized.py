"""transformers opens a base merged with an adapter of a resized model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers as hf

import jaxmix

OLD, NEW = 40, 46
_SIZES: dict[str, Any] = dict(
    vocab_size=OLD,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=1,
    num_attention_heads=4,
    max_position_embeddings=32,
    pad_token_id=0,
)


def _llama() -> Any:
    return hf.LlamaForCausalLM(hf.LlamaConfig(**_SIZES, num_key_value_heads=2))


def _tied() -> Any:
    config = hf.Qwen2Config(**_SIZES, num_key_value_heads=2, tie_word_embeddings=True)
    return hf.Qwen2ForCausalLM(config)


def _phi() -> Any:
    return hf.PhiForCausalLM(hf.PhiConfig(**_SIZES))


def _bert() -> Any:
    return hf.BertForMaskedLM(hf.BertConfig(**_SIZES))


def _roberta() -> Any:
    return hf.RobertaForMaskedLM(hf.RobertaConfig(**_SIZES))


_TOKENS = list(range(OLD, NEW))
_SAVED = {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}
_BOTH = {"target_modules": ["q_proj", "embed_tokens", "lm_head"]}
_AS_ONE: dict[str, Any] = {"ensure_weight_tying": True}
# The model, the new size, PEFT's arguments, and the merge's arguments.
CASES: dict[str, tuple[Callable[[], Any], int, dict[str, Any], dict[str, Any]]] = {
    "saved": (_llama, NEW, _SAVED, {}),
    "saved, fewer": (_llama, OLD - 4, _SAVED, {}),
    "factors": (_llama, NEW, _BOTH, {}),
    "embeddings that PEFT saves by itself": (_llama, NEW, {"target_modules": ["q_proj"]}, {}),
    "tokens": (
        *(_llama, NEW),
        *({"target_modules": ["q_proj"], "trainable_token_indices": _TOKENS}, {}),
    ),
    "a tied embedding": (_tied, NEW, {"target_modules": ["q_proj"]}, {}),
    "tied tokens": (
        *(_tied, NEW),
        *({"target_modules": ["q_proj"], "trainable_token_indices": _TOKENS}, {}),
    ),
    "saved as one": (
        *(_tied, NEW),
        *({"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], **_AS_ONE}, {}),
    ),
    "factors as one": (
        *(_tied, NEW),
        *({"target_modules": ["q_proj", "embed_tokens"], **_AS_ONE}, {}),
    ),
    "untied": (_tied, NEW, {"target_modules": ["embed_tokens"]}, {"untie": True}),
    "a head with a bias": (_phi, NEW, _SAVED, {}),
    "BERT's bias above its head": (_bert, NEW, {"target_modules": ["query"]}, {}),
    "RoBERTa's": (_roberta, NEW, {"target_modules": ["query"]}, {}),
}


def fill(model: Any) -> Any:
    """Fills what PEFT trains with random numbers."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for leaf in model.parameters():
            if leaf.requires_grad:
                leaf.copy_(torch.randn(leaf.shape, generator=generator) * 0.3)
    return model.eval()


def logits(model: Any) -> np.ndarray:
    """Returns a model's logits for some tokens, new ones included, in float64."""
    rows = model.get_input_embeddings().weight.shape[0]
    with torch.no_grad():
        return model.double()(
            input_ids=torch.tensor([[3, rows - 1, 7, rows - 3, 2]])
        ).logits.numpy()


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", CASES)
def test_resized_merge_opens_in_transformers(name: str, tmp_path: Path) -> None:
    """No key is missing or misshaped, and the logits match PEFT's."""
    make_model, rows, lora_options, options = CASES[name]
    cls = type(fill(make_model()))
    fill(make_model()).save_pretrained(tmp_path / "base")
    base = cls.from_pretrained(tmp_path / "base")
    base.resize_token_embeddings(rows, mean_resizing=False)
    model = fill(peft.get_peft_model(base, peft.LoraConfig(r=2, lora_alpha=6, **lora_options)))
    model.save_pretrained(tmp_path / "adapter")
    adapter, out = jaxmix.load(tmp_path / "adapter"), tmp_path / "out"
    merged = jaxmix.merge_checkpoint(
        tmp_path / "base", adapter, out, resize=True, verify=True, **options
    )
    assert {size for _, size in merged.resized.values()} == {rows}
    reloaded, loading = cls.from_pretrained(out, output_loading_info=True)
    assert not any(loading[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    expected = logits(model)
    actual = logits(reloaded)
    assert actual.shape == expected.shape == (1, 5, rows)
    assert np.abs(actual - expected).max() / np.abs(expected).max() < 1e-5
