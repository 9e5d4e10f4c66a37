"""The fields of config.json for each model type: supported, harmless, or refused.

The tables come from the sources of transformers 5.24 and from configs written by transformers 4. A
field that is in none of them is accepted if it is off (null, false or empty), otherwise refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["BERT", "COMMON", "DECODER_TYPES", "GPT2", "HARMLESS", "REFUSED", "ModelType"]


@dataclass(frozen=True)
class ModelType:
    """A ``model_type`` of decoder: the fields that it reads, and properties not in its config.

    Args:
        reads: The fields that affect the forward pass, in addition to `COMMON`.
        defaults: The defaults of transformers' config class for absent fields.
        qkv_bias: Whether q, k and v have biases; None if ``attention_bias`` decides.
        o_bias: Whether o has a bias; None if ``attention_bias`` decides.
        qk_norm: Whether q and k are normalized for each head before the rotary embedding.
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

DECODER_TYPES: dict[str, ModelType] = {
    "llama": ModelType(
        reads=_BIAS | {"mlp_bias"},
        defaults={"max_position_embeddings": 2048, "eos_token_id": 2},
        qkv_bias=None,
        o_bias=None,
    ),
    "mistral": ModelType(
        reads=frozenset(["sliding_window"]),
        defaults={
            "num_key_value_heads": 8,
            "max_position_embeddings": 131072,
            "sliding_window": 4096,
            "eos_token_id": 2,
        },
    ),
    "qwen2": ModelType(
        reads=_WINDOW | _BIAS,  # attention_bias is always true here and ignored in the file
        defaults={"num_key_value_heads": 32, "max_position_embeddings": 32768},
        qkv_bias=True,
    ),
    "qwen3": ModelType(
        reads=_WINDOW | _BIAS,
        defaults={"num_key_value_heads": 32, "head_dim": 128, "max_position_embeddings": 32768},
        qkv_bias=None,
        o_bias=None,
        qk_norm=True,
    ),
    "gemma": ModelType(
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

# The fields that all decoders read.
COMMON = frozenset(
    """model_type vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads
    num_key_value_heads head_dim hidden_act rms_norm_eps max_position_embeddings rope_theta
    rope_scaling rope_parameters partial_rotary_factor tie_word_embeddings eos_token_id
    pad_token_id""".split()
)

# The arguments of `ConfigReader` for GPT-2 and BERT.
_NO_CROSS = "layers would attend to the hidden states of another model, which is absent"
GPT2: dict[str, Any] = {
    # reorder_and_upcast_attn only affects the order in which scores are scaled and rounded.
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
    # transformers ignores the pooler_ fields; fields of heads do not affect the encoder.
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
        "is_decoder": "attention would be causal, but BERT is only supported as an encoder",
    },
}

# Fields about the origin, training, serving and storage of a model, and defaults of generation,
# which are arguments of `generate`.
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

# Fields that are refused if they are on, with the reasons and what to do.
REFUSED = {
    "attn_logit_softcapping": "the attention scores would be capped",
    "auto_map": (
        "the checkpoint brings its own code. If it computes the same as transformers' class of "
        "this model_type, remove the field"
    ),
    "final_logit_softcapping": "the logits would be capped",
    "pruned_heads": "heads would be missing",
    "quantization_config": (
        "the weights are quantized. Use the original checkpoint, or save it dequantized"
    ),
    "use_bidirectional_attention": "attention would not be causal, as it is in a decoder",
}
