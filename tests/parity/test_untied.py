"""transformers opens bases untied by `merge_checkpoint`, and computes PEFT's unmerged forward."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers as hf

import jaxmix

VOCAB, WIDTH = 40, 16
_IDS: dict[str, Any] = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2)
_BERT: dict[str, Any] = dict(
    vocab_size=VOCAB,
    hidden_size=WIDTH,
    intermediate_size=24,
    num_hidden_layers=1,
    num_attention_heads=4,
    max_position_embeddings=32,
    **_IDS,
)
_BART: dict[str, Any] = dict(
    vocab_size=VOCAB,
    d_model=WIDTH,
    encoder_layers=1,
    decoder_layers=1,
    encoder_attention_heads=4,
    decoder_attention_heads=4,
    encoder_ffn_dim=24,
    decoder_ffn_dim=24,
    decoder_start_token_id=2,
    **_IDS,
)
_T5: dict[str, Any] = dict(
    vocab_size=VOCAB, d_model=WIDTH, d_kv=4, d_ff=24, num_layers=1, num_heads=4
)
_BLOOM = dict(vocab_size=VOCAB, hidden_size=WIDTH, n_layer=1, n_head=4, **_IDS)


def _encoder_decoder() -> Any:
    vision = dict(hidden_size=WIDTH, intermediate_size=24, num_hidden_layers=1)
    vit_config = hf.ViTConfig(**vision, num_attention_heads=4, image_size=8, patch_size=4)
    gpt2_fields: dict[str, Any] = dict(
        vocab_size=VOCAB, n_embd=WIDTH, n_layer=1, n_head=4, n_positions=32, **_IDS
    )
    gpt2_fields |= dict(is_decoder=True, add_cross_attention=True)
    gpt2_config = hf.GPT2Config(**gpt2_fields)
    return hf.VisionEncoderDecoderConfig.from_encoder_decoder_configs(vit_config, gpt2_config)


# The class, the class that wrote the base, the config, and PEFT's target and saved modules.
CASES: dict[str, tuple[str, str, Callable[[], Any], list[str], list[str]]] = {
    "bert": (
        *("BertForMaskedLM", "BertForMaskedLM", lambda: hf.BertConfig(**_BERT)),
        *(["query"], ["word_embeddings", "decoder"]),
    ),
    "t5": (
        *("T5ForConditionalGeneration", "T5ForConditionalGeneration", lambda: hf.T5Config(**_T5)),
        *(["q"], ["lm_head"]),
    ),
    "bart": (
        *("BartForConditionalGeneration", "BartModel", lambda: hf.BartConfig(**_BART)),
        *(["q_proj", "shared"], ["lm_head"]),
    ),
    "bloom": (
        *("BloomForCausalLM", "BloomModel", lambda: hf.BloomConfig(**_BLOOM)),
        *(["query_key_value", "word_embeddings"], []),
    ),
    "marian": (
        *("MarianMTModel", "MarianMTModel", lambda: hf.MarianConfig(**_BART)),
        *(["q_proj", "lm_head"], []),
    ),
    "vit and gpt2": (
        *("VisionEncoderDecoderModel", "VisionEncoderDecoderModel", _encoder_decoder),
        *(["c_attn", "q_proj"], ["lm_head", "wte"]),
    ),
}


def _fill(model: Any, only: str, seed: int) -> Any:
    """Fills the parameters whose names contain `only` with random numbers of a seed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, leaf in model.named_parameters():
            if only in name and "embed_positions" not in name:
                leaf.copy_(torch.randn(leaf.shape, generator=generator) * 0.3)
    return model.eval()


def _logits(model: Any) -> np.ndarray:
    """Returns a model's logits, in float64."""
    ids = torch.tensor([[3, 5, 7, 9, 11, 2, 1]])
    config: Mapping[str, Any] = model.config.to_dict()
    inputs: dict[str, Any] = {"input_ids": ids}
    if "encoder" in config:
        image = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(5))
        inputs = {"pixel_values": image.double()}
    if config.get("is_encoder_decoder"):
        inputs["decoder_input_ids"] = ids[:, 2:]
    with torch.no_grad():
        return model.double()(**inputs).logits.numpy()


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", CASES)
def test_untied_base_opens_in_transformers(name: str, tmp_path: Path) -> None:
    """No key is missing or unexpected, and the logits match PEFT's."""
    model_class, base_class, config, targets, saved = CASES[name]
    _fill(getattr(hf, base_class)(config()), "", 0).save_pretrained(tmp_path / "base")
    model = getattr(hf, model_class).from_pretrained(tmp_path / "base")
    lora = peft.LoraConfig(r=2, target_modules=targets, modules_to_save=saved or None)
    model = peft.get_peft_model(model, lora)
    for seed, part in enumerate(("lora_", "modules_to_save"), 1):
        model = _fill(model, part, seed)
    model.save_pretrained(tmp_path / "adapter")
    expected = _logits(model)
    adapter, out = jaxmix.load(tmp_path / "adapter", base=tmp_path / "base"), tmp_path / "out"
    merged = jaxmix.merge_checkpoint(tmp_path / "base", adapter, out, untie=True, verify=True)
    assert merged.untied is not None
    model, loading = getattr(hf, model_class).from_pretrained(out, output_loading_info=True)
    assert not any(loading[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    error = np.abs(_logits(model) - expected).max() / np.abs(expected).max()
    assert error < 1e-5
