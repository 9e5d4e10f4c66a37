"""config.json: fields that are used, fields that are refused, and their errors."""

import math
from typing import Any

import pytest

from jaxmix.errors import CheckpointError, UnsupportedError
from jaxmix.models import DecoderConfig, read_config

from . import tiny


def refusal(kind: type[Exception], model_type: str = "llama", /, **fields: Any) -> str:
    """Returns the message of the error for a config with these fields."""
    with pytest.raises(kind) as caught:
        tiny.config(model_type, **fields)
    return str(caught.value)


def test_config_fields() -> None:
    config = tiny.config("llama", rms_norm_eps=1e-5, pad_token_id=4, eos_token_id=[1, 2])
    assert isinstance(config, DecoderConfig)
    assert (config.hidden_size, config.head_dim, config.num_key_value_heads) == (12, 4, 2)
    assert config.qkv_bias and config.o_bias and config.mlp_bias
    assert (config.rms_norm_eps, config.pad_token_id, config.eos_token_ids) == (1e-5, 4, (1, 2))
    assert not config.tie_word_embeddings
    hash(config)


def test_missing_fields_have_transformers_defaults() -> None:
    without_eos = {name: value for name, value in tiny.FIELDS.items() if "eos" not in name}
    required_fields = {
        name: value
        for name, value in without_eos.items()
        if name not in ("head_dim", "num_key_value_heads")
    }
    llama = read_config({"model_type": "llama", **required_fields})
    assert (llama.num_key_value_heads, llama.head_dim, llama.eos_token_ids) == (6, 2, (2,))
    gemma = read_config({"model_type": "gemma", **without_eos, "head_dim": 256})
    assert gemma.tie_word_embeddings and gemma.activation == "gelu_tanh"
    assert (gemma.norm_offset, gemma.embed_scale, gemma.pad_token_id) == (1.0, math.sqrt(12), 0)
    assert tiny.config("mistral").windows == (4096, 4096)
    assert tiny.config("mistral", sliding_window=None).windows == (None, None)
    qwen2 = tiny.config("qwen2")
    assert (qwen2.qkv_bias, qwen2.o_bias, qwen2.windows) == (True, False, (None, None))
    assert qwen2.eos_token_ids == ()


def test_windows_of_layers() -> None:
    windowed = {"use_sliding_window": True, "sliding_window": 5}
    assert tiny.config("qwen2", **windowed).windows == (None, None)
    assert tiny.config("qwen2", **windowed, max_window_layers=1).windows == (None, 5)
    assert tiny.config("qwen2", sliding_window=5, max_window_layers=0).windows == (None, None)
    types = ["sliding_attention", "full_attention"]
    assert tiny.config("qwen2", **windowed, layer_types=types).windows == (5, None)
    message = refusal(CheckpointError, "qwen2", layer_types=types)
    assert "layer_types has sliding_attention, but there is no sliding_window" in message
    message = refusal(CheckpointError, "qwen2", **windowed, layer_types=types[:1])
    assert "layer_types is ['sliding_attention'], expected a list of 2" in message
    message = refusal(UnsupportedError, "qwen2", **windowed, layer_types=["chunked_attention"] * 2)
    assert "layer_types: chunked_attention is not supported" in message
    message = refusal(CheckpointError, "qwen2", **windowed, max_window_layers=-1)
    assert "max_window_layers is -1, expected an integer of at least 0" in message


def test_two_activation_fields_of_gemma() -> None:
    assert tiny.config("gemma", hidden_act="gelu", hidden_activation=None).activation == "gelu_tanh"
    message = refusal(CheckpointError, "gemma", hidden_act="gelu", hidden_activation="silu")
    assert "hidden_activation is 'silu', but hidden_act is 'gelu_pytorch_tanh'" in message


@pytest.mark.parametrize("kind", ["gemma2", "gemma3_text", "mixtral", None, 3, []])
def test_unsupported_model_types_are_refused(kind: Any) -> None:
    with pytest.raises(UnsupportedError) as caught:
        read_config({"model_type": kind})
    assert f"config.json: model_type is {kind!r}, expected one of llama, mistral, qwen2, " in str(
        caught.value
    )
    assert "Adapters can still be mixed into the weights of another library's model" in str(
        caught.value
    )


def test_unsupported_fields_are_listed() -> None:
    """Unsupported fields are listed with reasons; disabled fields are accepted."""
    disabled = dict(
        quantization_config=None, final_logit_softcapping=None, use_mrope=False, novelty=[]
    )
    assert tiny.config("llama", **disabled) == tiny.config("llama")
    message = refusal(
        UnsupportedError,
        quantization_config={
            "quant_method": "gptq",
            "bits": 4,
            "desc_act": True,
            "group_size": 128,
        },
        final_logit_softcapping=30.0,
        sliding_window=7,
        novelty=0,
        hidden_act="mish",
    )
    assert message.startswith("config.json: unsupported fields of this llama config:\n")
    assert "quantization_config = {'quant_method': 'gptq', 'bits': 4, " in message
    assert "…: the weights are quantized. Use the original checkpoint" in message
    assert "final_logit_softcapping = 30.0: the logits would be capped" in message
    assert "sliding_window = 7: not a field of llama that this version of jaxmix knows" in message
    assert "novelty = 0: not a field" in message
    assert "hidden_act = 'mish': expected one of silu, swish, gelu, " in message
    assert "If they do not affect the forward pass, remove them from the file" in message
    message = refusal(UnsupportedError, "gemma", use_bidirectional_attention=True)
    assert "attention would not be causal, as it is in a decoder" in message
    assert "attention_bias = True" in refusal(UnsupportedError, "mistral", attention_bias=True)


def test_invalid_fields_are_listed() -> None:
    message = refusal(
        CheckpointError,
        hidden_size=0,
        intermediate_size="many",
        num_key_value_heads=4,
        head_dim=5,
        rms_norm_eps=None,
        tie_word_embeddings="yes",
        eos_token_id="</s>",
    )
    assert message.startswith("config.json: invalid fields:\n")
    assert "hidden_size is 0, expected an integer of at least 1\n" in message
    assert "intermediate_size is 'many', expected an integer of at least 1\n" in message
    assert "num_attention_heads = 6 is not a multiple of num_key_value_heads = 4\n" in message
    assert "head_dim = 5 is odd, but the rotary embedding needs pairs\n" in message
    assert "rms_norm_eps is None, expected a number of at least 0\n" in message
    assert "tie_word_embeddings is 'yes', expected true or false\n" in message
    assert "eos_token_id is '</s>', expected a token id or a list of token ids\n" in message
    assert message.endswith("Was the file edited?")
    message = refusal(CheckpointError, rms_norm_eps=10**400)
    assert "rms_norm_eps is 1000" in message and "expected a number of at least 0\n" in message
    message = refusal(CheckpointError, head_dim=None, hidden_size=13)
    assert (
        "hidden_size = 13 is not a multiple of num_attention_heads = 6, and there is no head_dim"
        in message
    )
