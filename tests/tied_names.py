"""Writes tied_names.json: the names in the files of transformers' models, tied and untied.

Run as ``python -m tests.tied_names`` with torch and transformers. Models are tiny; names are real.
"""

import json
import re
import tempfile
from pathlib import Path
from typing import Any

__all__ = ["FILE", "MODELS", "saved"]

FILE = Path(__file__).with_suffix(".json")

_LLAMA: dict[str, Any] = dict(
    vocab_size=13,
    hidden_size=8,
    intermediate_size=12,
    num_hidden_layers=1,
    num_attention_heads=2,
    pad_token_id=0,
)
_GROUPED = dict(**_LLAMA, num_key_value_heads=1, head_dim=4)
_BERT = dict(**_LLAMA, max_position_embeddings=11)
_GPT2: dict[str, Any] = dict(
    vocab_size=13, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0, pad_token_id=0
)
_SEQ2SEQ: dict[str, Any] = dict(
    vocab_size=13,
    d_model=8,
    encoder_layers=1,
    decoder_layers=1,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    encoder_ffn_dim=12,
    decoder_ffn_dim=12,
    pad_token_id=0,
    bos_token_id=0,
    eos_token_id=0,
    decoder_start_token_id=0,
)
_OPT: dict[str, Any] = dict(
    vocab_size=13,
    hidden_size=8,
    ffn_dim=12,
    num_hidden_layers=1,
    num_attention_heads=2,
    word_embed_proj_dim=8,
    max_position_embeddings=9,
    pad_token_id=0,
)
_T5: dict[str, Any] = dict(
    vocab_size=13,
    d_model=8,
    d_kv=4,
    d_ff=12,
    num_layers=1,
    num_heads=2,
    pad_token_id=0,
    decoder_start_token_id=0,
)
_DISTILBERT: dict[str, Any] = dict(
    vocab_size=13, dim=8, hidden_dim=12, n_layers=1, n_heads=2, max_position_embeddings=9
)

# By class, the prefix of its config's class, and the config; whether the embedding may be tied.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    **{f"{n}ForCausalLM": (n, _GROUPED) for n in ("Llama", "Mistral", "Qwen2", "Gemma")},
    "LlamaModel": ("Llama", _GROUPED),
    "LlamaForSequenceClassification": ("Llama", _GROUPED),
    "LlamaForQuestionAnswering": ("Llama", _GROUPED),
    "GPT2LMHeadModel": ("GPT2", _GPT2),
    "GPT2Model": ("GPT2", _GPT2),
    "GPT2ForSequenceClassification": ("GPT2", _GPT2),
    "GPTNeoXForCausalLM": ("GPTNeoX", {**_LLAMA, "bos_token_id": 0, "eos_token_id": 0}),
    "OPTForCausalLM": ("OPT", _OPT),
    "OPTModel": ("OPT", _OPT),
    "BertForMaskedLM": ("Bert", _BERT),
    "BertModel": ("Bert", _BERT),
    "BertForSequenceClassification": ("Bert", _BERT),
    "RobertaForMaskedLM": ("Roberta", _BERT),
    "RobertaModel": ("Roberta", _BERT),
    "DistilBertForMaskedLM": ("DistilBert", _DISTILBERT),
    "DistilBertModel": ("DistilBert", _DISTILBERT),
    "T5ForConditionalGeneration": ("T5", _T5),
    "T5EncoderModel": ("T5", _T5),
    "BartForConditionalGeneration": ("Bart", _SEQ2SEQ),
    "BartModel": ("Bart", _SEQ2SEQ),
    "WhisperForConditionalGeneration": (
        "Whisper",
        {**_SEQ2SEQ, "max_source_positions": 4, "max_target_positions": 5, "num_mel_bins": 3},
    ),
    "BloomForCausalLM": (
        "Bloom",
        dict(vocab_size=13, hidden_size=8, n_layer=1, n_head=2, pad_token_id=0),
    ),
    "MambaForCausalLM": (
        "Mamba",
        dict(vocab_size=13, hidden_size=8, num_hidden_layers=1, state_size=2),
    ),
    "AlbertForMaskedLM": ("Albert", {**_BERT, "embedding_size": 8}),
    "ElectraForMaskedLM": ("Electra", {**_BERT, "embedding_size": 8}),
}


def saved(model: str, tied: bool) -> dict[str, Any]:
    """Returns the names in a model's file.

    Args:
        model: the class of transformers.
        tied: the config's ``tie_word_embeddings``.

    Returns:
        ``tied``: whether it really is; ``embedding``: the module that the file has it under;
        ``head``: the output's module or None; ``leaves``: the names in the file, one of each stack
        of layers.
    """
    import transformers
    from safetensors import safe_open

    prefix, config = MODELS[model]
    loaded = getattr(transformers, f"{prefix}Config")(**config, tie_word_embeddings=tied)
    net = getattr(transformers, model)(loaded)
    with tempfile.TemporaryDirectory() as folder:
        net.save_pretrained(folder)
        with safe_open(Path(folder, "model.safetensors"), "np") as file:
            names = sorted(file.keys())
    modules = list(net.named_modules(remove_duplicate=False))
    embedding, head = net.get_input_embeddings(), net.get_output_embeddings()
    places = [name for name, module in modules if module is embedding]
    # One name of each stack of layers is enough.
    stacks = {re.split(r"\.\d+\.", name)[0]: name for name in reversed(names)}
    return {
        "tied": head is not None and head.weight is embedding.weight,
        "embedding": next(name for name in places if f"{name}.weight" in names),
        "head": next((name for name, module in modules if module is head), None),
        "leaves": sorted(stacks.values()),
    }


def main() -> None:
    """Writes the names of all models."""
    out = {}
    for model in MODELS:
        for tied in (True, False):
            names = saved(model, tied)
            if tied or (not names["tied"] and names["head"] is not None):
                out[f"{model}{'' if tied else ', not tied'}"] = names
    FILE.write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()
