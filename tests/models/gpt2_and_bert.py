"""Tiny random GPT-2 and BERT models of transformers."""

from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

# All sizes are different; the epsilons are large enough to affect the outputs.
GPT2: dict[str, Any] = {
    "model_type": "gpt2",
    "vocab_size": 47,
    "n_positions": 26,
    "n_embd": 24,
    "n_layer": 2,
    "n_head": 6,
    "n_inner": 34,
    "layer_norm_epsilon": 3e-2,
    "bos_token_id": None,
    "eos_token_id": None,
}
BERT: dict[str, Any] = {
    "model_type": "bert",
    "vocab_size": 47,
    "max_position_embeddings": 26,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "intermediate_size": 34,
    "type_vocab_size": 3,
    "layer_norm_eps": 3e-2,
}
CASES: dict[str, dict[str, Any]] = {
    "gpt2": GPT2,
    "gpt2-inner": {**GPT2, "n_inner": None, "n_layer": 1, "activation_function": "gelu"},
    "gpt2-untied": {**GPT2, "n_layer": 1, "tie_word_embeddings": False},
    "gpt2-scales": {**GPT2, "scale_attn_by_inverse_layer_idx": True},
    "gpt2-unscaled": {**GPT2, "n_layer": 1, "scale_attn_weights": False},
    "gpt2-upcast": {**GPT2, "n_layer": 1, "reorder_and_upcast_attn": True},
    "bert": BERT,
    "bert-relu": {**BERT, "num_hidden_layers": 1, "hidden_act": "relu"},
    "bert-gelu-tanh": {**BERT, "num_hidden_layers": 1, "hidden_act": "gelu_new"},
}
GPTS = [case for case in CASES if case.startswith("gpt2")]
BERTS = [case for case in CASES if case.startswith("bert")]


@cache
def torch_model(case: str) -> Any:
    """Returns a case's model with every leaf random, so every leaf affects the output."""
    auto_class: Any = AutoModelForCausalLM if case in GPTS else AutoModel
    config = AutoConfig.for_model(**CASES[case])
    model = auto_class.from_config(config, attn_implementation="eager").eval()
    randomize(model, seed=sum(map(ord, case)))
    return model


def randomize(model: Any, seed: int) -> None:
    """Fills every leaf with random numbers, norms and biases included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, leaf in model.named_parameters():
            noise = torch.randn(leaf.shape, generator=generator)
            is_norm = name.endswith(".weight") and leaf.ndim == 1
            leaf.copy_((1.0 if is_norm else 0.0) + 0.3 * noise)


@cache
def torch_model64(case: str) -> Any:
    """Returns the same model in 64 bits."""
    return deepcopy(torch_model(case)).double()


def save(case: str, folder: Path, model: Any = None) -> Path:
    """Saves a case with transformers and returns the folder."""
    (torch_model(case) if model is None else model).save_pretrained(folder)
    return folder


def outputs(model: Any, tokens: np.ndarray, **inputs: np.ndarray) -> Any:
    """Returns transformers' outputs."""
    tensors = {name: torch.tensor(array) for name, array in inputs.items()}
    with torch.no_grad():
        return model(torch.tensor(tokens), **tensors)


def state_of(model: Any) -> dict[str, np.ndarray]:
    """Returns a state dict of NumPy arrays."""
    return {name: leaf.numpy() for name, leaf in model.state_dict().items()}
