"""Tiny random decoders of transformers, their folders, and their logits."""

from functools import cache
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from transformers import AutoConfig, AutoModelForCausalLM

from jaxmix.models import Decoder

# All sizes are different, so axes cannot be confused.
SIZES = {
    "vocab_size": 47,
    "hidden_size": 24,
    "intermediate_size": 34,
    "num_hidden_layers": 1,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    # Large enough to affect the outputs.
    "rms_norm_eps": 3e-2,
    "pad_token_id": None,
    "eos_token_id": None,
    "bos_token_id": None,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 30.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 3.0,
    "original_max_position_embeddings": 16,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 50.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 3.0,
    "beta_slow": 0.5,
}

CASES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "num_hidden_layers": 3},
    "llama-heads": {"model_type": "llama", "head_dim": 10, "num_key_value_heads": 6},
    "llama-biases": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "llama-tied": {"model_type": "llama", "tie_word_embeddings": True},
    "llama-gelu": {"model_type": "llama", "hidden_act": "gelu"},
    "llama-gelu-tanh": {"model_type": "llama", "hidden_act": "gelu_new"},
    "llama-relu": {"model_type": "llama", "hidden_act": "relu"},
    "llama-theta": {"model_type": "llama", "rope_parameters": {"rope_theta": 7.0}},
    "llama-linear": {
        "model_type": "llama",
        "rope_parameters": {"rope_type": "linear", "factor": 2.5, "rope_theta": 100.0},
    },
    "llama-llama3": {"model_type": "llama", "rope_parameters": LLAMA3, "head_dim": 12},
    "llama-yarn": {"model_type": "llama", "rope_parameters": YARN, "head_dim": 12},
    "llama-yarn-mscale": {
        "model_type": "llama",
        "rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 2.0, "truncate": False},
        "head_dim": 12,
    },
    "llama-yarn-factor": {
        "model_type": "llama",
        "rope_parameters": {**YARN, "attention_factor": 1.4},
        "head_dim": 16,
    },
    "mistral": {"model_type": "mistral", "sliding_window": 5},
    "mistral-full": {"model_type": "mistral", "sliding_window": None, "head_dim": 6},
    "qwen2": {"model_type": "qwen2"},
    "qwen2-window": {
        "model_type": "qwen2",
        "num_hidden_layers": 2,
        "use_sliding_window": True,
        "sliding_window": 4,
        "max_window_layers": 1,
        "tie_word_embeddings": True,
    },
    "qwen3": {"model_type": "qwen3", "head_dim": 10},
    "qwen3-all": {
        "model_type": "qwen3",
        "num_hidden_layers": 2,
        "head_dim": 8,
        "attention_bias": True,
        "use_sliding_window": True,
        "sliding_window": 6,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "gemma": {"model_type": "gemma", "head_dim": 10, "num_key_value_heads": 1},
    "gemma-untied": {
        "model_type": "gemma",
        "head_dim": 14,
        "attention_bias": True,
        "tie_word_embeddings": False,
    },
}


@cache
def torch_model(case: str) -> Any:
    """Returns a case's model with every leaf random, so every leaf affects the output."""
    config = AutoConfig.for_model(**{**SIZES, **CASES[case]})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(sum(map(ord, case)))
    with torch.no_grad():
        for name, leaf in model.named_parameters():
            noise = torch.randn(leaf.shape, generator=generator)
            center = 1.0 if "norm" in name and CASES[case]["model_type"] != "gemma" else 0.0
            leaf.copy_(center + 0.3 * noise)
    return model


def save(case: str, folder: Path, **options: Any) -> Path:
    """Saves a case with transformers and returns the folder."""
    torch_model(case).save_pretrained(folder, **options)
    return folder


def torch_logits(case: str, tokens: np.ndarray, **inputs: np.ndarray) -> np.ndarray:
    """Returns transformers' logits."""
    tensors = {name: torch.tensor(array) for name, array in inputs.items()}
    with torch.no_grad():
        return torch_model(case)(torch.tensor(tokens), **tensors).logits.numpy()


def tokens_of(seed: int, rows: int = 2, count: int = 19) -> np.ndarray:
    """Returns random tokens."""
    return np.random.default_rng(seed).integers(0, SIZES["vocab_size"], (rows, count))


def logits_of(
    model: Decoder, tokens: np.ndarray, positions: np.ndarray | None = None
) -> np.ndarray:
    """Returns jaxmix's logits, compiled."""
    position_array = None if positions is None else jnp.asarray(positions)
    return np.asarray(nnx.jit(model)(jnp.asarray(tokens), positions=position_array))


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Returns the largest difference, relative to the largest number."""
    assert a.shape == b.shape, (a.shape, b.shape)
    return float(np.abs(a - b).max() / np.abs(b).max())
