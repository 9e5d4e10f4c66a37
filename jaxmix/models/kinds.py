"""The fields of config.json: which count, which do not touch the forward, which are refused.

Read from the sources of transformers 5.24 and from configs that transformers 4 wrote. A field that
is in none of these tables is accepted while it is off (null, false, empty), and else refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["BERT", "COMMON", "GPT2", "HARMLESS", "KINDS", "REFUSED", "Kind"]


@dataclass(frozen=True)
class Kind:
    """One ``model_type`` of decoder: the fields that it reads, and what is not in its config.

    Args:
        reads: The fields that change its forward, beside those that all kinds read.
        defaults: What transformers' config class takes for a field that the file leaves out.
        qkv_bias: Whether q, k and v have biases; None leaves it to ``attention_bias``.
        o_bias: The same for o.
        qk_norm: Whether q and k are normed head by head before they are turned.
        gemma: Whether norms multiply with ``1 + w`` and the embedding with ``√hidden_size``.
    """

    reads: frozenset[str] = frozenset()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    qkv_bias: bool | None = False
    o_bias: bool | None = False
    qk_norm: bool = False
    gemma: bool = False


_WINDOW = frozenset("sliding_window use_sliding_window max_window_layers layer_types".split())
_BIAS = frozenset(["attention_bias"])

KINDS: dict[str, Kind] = {
    "llama": Kind(
        reads=_BIAS | {"mlp_bias"},
        defaults={"max_position_embeddings": 2048, "eos_token_id": 2},
        qkv_bias=None,
        o_bias=None,
    ),
    "mistral": Kind(
        reads=frozenset(["sliding_window"]),
        defaults={
            "num_key_value_heads": 8,
            "max_position_embeddings": 131072,
            "sliding_window": 4096,
            "eos_token_id": 2,
        },
    ),
    "qwen2": Kind(
        reads=_WINDOW | _BIAS,  # attention_bias is a constant here, whatever the file says
        defaults={"num_key_value_heads": 32, "max_position_embeddings": 32768},
        qkv_bias=True,
    ),
    "qwen3": Kind(
        reads=_WINDOW | _BIAS,
        defaults={"num_key_value_heads": 32, "head_dim": 128, "max_position_embeddings": 32768},
        qkv_bias=None,
        o_bias=None,
        qk_norm=True,
    ),
    "gemma": Kind(
        reads=_BIAS | {"hidden_activation"},
        defaults={
            "num_key_value_heads": 16,
            "head_dim": 256,
            "hidden_act": "gelu_pytorch_tanh",
            "max_position_embeddings": 8192,
            "tie_word_embeddings": True,
            "eos_token_id": 1,
            "pad_token_id": 0,
        },
        qkv_bias=None,
        o_bias=None,
        gemma=True,
    ),
}

# What all decoders read.
COMMON = frozenset(
    """model_type vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads
    num_key_value_heads head_dim hidden_act rms_norm_eps max_position_embeddings rope_theta
    rope_scaling rope_parameters partial_rotary_factor tie_word_embeddings eos_token_id
    pad_token_id""".split()
)

# What is given to `fields.Fields`: of GPT-2, and of BERT.
_NO_CROSS = "layers would look at another model's hidden states, which there are none of here"
GPT2: dict[str, Any] = {
    # reorder_and_upcast_attn says in which order scores are scaled and rounded, no more.
    "reads": frozenset(
        """model_type vocab_size n_positions n_embd n_layer n_head n_inner activation_function
        layer_norm_epsilon scale_attn_weights scale_attn_by_inverse_layer_idx tie_word_embeddings
        eos_token_id pad_token_id reorder_and_upcast_attn n_ctx resid_pdrop embd_pdrop attn_pdrop
        summary_activation summary_first_dropout summary_proj_to_labels summary_type
        summary_use_proj""".split()
    ),
    "defaults": {
        "activation_function": "gelu_new",
        "scale_attn_weights": True,
        "tie_word_embeddings": True,
        "eos_token_id": 50256,
    },
    "refuses": {"add_cross_attention": _NO_CROSS},
}
BERT: dict[str, Any] = {
    # The pooler_ fields are the original's and read by nobody; a head is none of the encoder's.
    "reads": frozenset(
        """model_type vocab_size hidden_size intermediate_size num_hidden_layers
        num_attention_heads max_position_embeddings type_vocab_size hidden_act layer_norm_eps
        position_embedding_type attention_probs_dropout_prob hidden_dropout_prob classifier_dropout
        directionality pad_token_id eos_token_id tie_word_embeddings pooler_fc_size
        pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head pooler_type""".split()
    ),
    "defaults": {"hidden_act": "gelu", "type_vocab_size": 2},
    "refuses": {
        "add_cross_attention": _NO_CROSS,
        "is_decoder": "no token would see what follows it, and BERT here is an encoder",
    },
}

# Who made it, how it is trained, served and written down; and what generation does by default,
# which is for the caller of `generate` to say. `dtype` is the file's own.
HARMLESS = frozenset(
    """_attn_implementation _attn_implementation_autoset _name_or_path architectures
    attention_dropout bos_token_id dtype finetuning_task id2label initializer_range is_decoder
    is_llama_config label2id max_sequence_length model_max_length name_or_path output_attentions
    output_hidden_states prefix pretraining_tp problem_type return_dict sep_token_id
    task_specific_params tokenizer_class torch_dtype torchscript transformers.js_config
    transformers_version unsloth_fixed unsloth_version use_bfloat16 use_cache
    chunk_size_feed_forward
    bad_words_ids begin_suppress_tokens diversity_penalty do_sample early_stopping
    encoder_no_repeat_ngram_size exponential_decay_length_penalty forced_bos_token_id
    forced_eos_token_id length_penalty max_length min_length no_repeat_ngram_size num_beam_groups
    num_beams num_return_sequences output_scores remove_invalid_values repetition_penalty
    return_dict_in_generate suppress_tokens temperature top_k top_p typical_p""".split()
)

# Why a field is refused when it is on, and what to do.
REFUSED = {
    "attn_logit_softcapping": "the attention's scores would be capped",
    "auto_map": (
        "code of the checkpoint's own replaces transformers'. If it computes what transformers' "
        "class of this model_type does, take the field out"
    ),
    "final_logit_softcapping": "the logits would be capped",
    "pruned_heads": "heads would be missing",
    "quantization_config": (
        "the weights are quantized. Take the checkpoint that it was made from, or write it out "
        "dequantized"
    ),
    "use_bidirectional_attention": "tokens would see those after them, which a decoder's do not",
}
