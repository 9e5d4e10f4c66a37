"""transformers opens a base merged with an adapter that contains a head."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers as hf

import jaxmix
from jaxmix.converters.merging import verify_merge
from jaxmix.errors import LayoutError

VOCAB, LABELS = 40, 3
_LLAMA: dict[str, Any] = dict(
    vocab_size=VOCAB,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=32,
    pad_token_id=0,
)
_BERT = {k: v for k, v in _LLAMA.items() if k != "num_key_value_heads"}


def _llama(**config: Any) -> Any:
    return hf.LlamaConfig(**_LLAMA, **config)


def _gpt2() -> Any:
    sizes = dict(vocab_size=VOCAB, n_embd=16, n_layer=2, n_head=4, n_positions=32)
    return hf.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0, pad_token_id=0)


def _distilbert() -> Any:
    sizes = dict(vocab_size=VOCAB, dim=16, hidden_dim=24, n_layers=2, n_heads=4)
    return hf.DistilBertConfig(**sizes, max_position_embeddings=32)


def _t5() -> Any:
    sizes = dict(vocab_size=VOCAB, d_model=16, d_kv=4, d_ff=24, num_layers=1, num_heads=4)
    special = dict(decoder_start_token_id=0, pad_token_id=0, eos_token_id=1)
    return hf.T5Config(**sizes, **special)


# The base's class and config, the adapted class, PEFT's task, targets, and saved modules.
CASES: dict[str, tuple[str, Callable[[], Any], str, str, list[str], list[str] | None]] = {
    "llama": (
        *("LlamaForCausalLM", _llama, "LlamaForSequenceClassification", "SEQ_CLS"),
        *(["q_proj"], None),
    ),
    "a tied llama": (
        *("LlamaForCausalLM", lambda: _llama(tie_word_embeddings=True)),
        *("LlamaForTokenClassification", "TOKEN_CLS", ["q_proj", "embed_tokens"], None),
    ),
    "another prefix": (
        *("LlamaForCausalLM", _llama, "LlamaForQuestionAnswering", "QUESTION_ANS"),
        *(["q_proj"], None),
    ),
    "no prefix": (
        *("BertModel", lambda: hf.BertConfig(**_BERT), "BertForSequenceClassification"),
        *("SEQ_CLS", ["query"], None),
    ),
    "another head": (
        *("BertForMaskedLM", lambda: hf.BertConfig(**_BERT), "BertForTokenClassification"),
        *("TOKEN_CLS", ["query"], None),
    ),
    "questions": (
        *("BertModel", lambda: hf.BertConfig(**_BERT), "BertForQuestionAnswering"),
        *("QUESTION_ANS", ["query"], None),
    ),
    "a head of two layers": (
        *("RobertaForMaskedLM", lambda: hf.RobertaConfig(**_BERT)),
        *("RobertaForSequenceClassification", "SEQ_CLS", ["query"], None),
    ),
    "gpt2": (
        "GPT2LMHeadModel",
        _gpt2,
        "GPT2ForSequenceClassification",
        "SEQ_CLS",
        ["c_attn"],
        None,
    ),
    "distilbert": (
        *("DistilBertForMaskedLM", _distilbert, "DistilBertForSequenceClassification", "SEQ_CLS"),
        *(["q_lin"], ["pre_classifier"]),
    ),
    "t5": (
        *("T5ForConditionalGeneration", _t5, "T5ForSequenceClassification", "SEQ_CLS"),
        *(["q"], ["classification_head"]),
    ),
}


def fill(model: Any, seed: int, only: str = "") -> Any:
    """Fills the parameters whose names contain `only` with random numbers of a seed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, leaf in model.named_parameters():
            if only in name:
                leaf.copy_(torch.randn(leaf.shape, generator=generator) * 0.3)
    return model.eval()


def logits(model: Any) -> np.ndarray:
    """Returns a model's logits for some tokens, in float64."""
    ids = torch.tensor([[3, 5, 7, 9, 11, 2, 1]])
    with torch.no_grad():
        out = model.double()(input_ids=ids)
    output = out.logits if "logits" in out else torch.stack([out.start_logits, out.end_logits])
    return output.numpy()


def save_base_and_adapter(name: str, folder: Path) -> tuple[Path, Any, np.ndarray]:
    """Saves a base and an adapter; returns the folder, the adapter and PEFT's logits."""
    base_class, config, adapted, task, targets, saved = CASES[name]
    base_config = config()
    base = fill(getattr(hf, base_class)(base_config), 0)
    base.save_pretrained(folder / "base", max_shard_size="8KB")
    count = 2 if task == "QUESTION_ANS" else LABELS
    reloaded = type(base_config).from_pretrained(folder / "base", num_labels=count)
    model = getattr(hf, adapted).from_pretrained(folder / "base", config=reloaded)
    if model.base_model_prefix not in base.state_dict() and task == "QUESTION_ANS":
        body = base.base_model.state_dict()
        model.base_model.load_state_dict(
            {k: body[k] for k in model.base_model.state_dict()}, strict=True
        )
    lora_config = peft.LoraConfig(
        r=2, target_modules=targets, task_type=task, modules_to_save=saved
    )
    model = fill(fill(peft.get_peft_model(model, lora_config), 1, "lora_"), 2, "modules_to_save")
    model.save_pretrained(folder / "adapter")
    adapter = jaxmix.load(folder / "adapter")
    # Sets the task again, since some readers drop it.
    object.__setattr__(adapter, "metadata", {"task_type": task})
    return folder / "base", adapter, logits(model)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", CASES)
def test_merged_head_opens_in_transformers(name: str, tmp_path: Path) -> None:
    """No key is missing or unexpected, and the logits match PEFT's."""
    base, adapter, expected = save_base_and_adapter(name, tmp_path)
    adapted, task = CASES[name][2:4]
    out = tmp_path / "out"
    merged = jaxmix.merge_checkpoint(base, adapter, out, verify=True, new_head=True)
    assert merged.new_head == adapted
    model, loading = getattr(hf, adapted).from_pretrained(out, output_loading_info=True)
    assert not any(loading[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    relative_error = np.abs(logits(model) - expected).max() / np.abs(expected).max()
    assert relative_error < 1e-5
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == [adapted]
    if task != "QUESTION_ANS":
        assert config["id2label"] == {str(i): f"LABEL_{i}" for i in range(LABELS)}
    assert verify_merge(base, adapter, out, new_head=True).ok
    shapes = r"(\n  [\w.]+ \(\d+, ?(\d+)?\))+"
    advice = re.escape(
        f"It is the head of {adapted}. Use new_head=True to write it as new tensors, and the class "
        "and its labels to config.json. Or save such a base with transformers, and merge into "
        f"that: {adapted}.from_pretrained(base).save_pretrained(folder)."
    )
    lacks = rf"{re.escape(str(base))} lacks \(config\.json names \w+\)"
    found = rf"the adapters have a head that {lacks}:{shapes}"
    with pytest.raises(LayoutError, match=rf"\A{found}\n{advice}\Z"):
        jaxmix.merge_checkpoint(base, adapter, tmp_path / "no", new_head=False)
    assert jaxmix.merge_checkpoint(base, adapter, tmp_path / "default").new_head == adapted
