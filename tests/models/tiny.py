"""Tiny models with random leaves, and their folders, without torch."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from jaxmix.models import from_torch, read_config
from jaxmix.models.torch_names import Config, is_transposed, torch_name
from jaxmix.models.tree import skeleton
from jaxmix.models.weights import MODELS

FIELDS = {
    "vocab_size": 23,
    "hidden_size": 12,
    "intermediate_size": 18,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "eos_token_id": None,
}
WINDOWED = {
    "use_sliding_window": True,
    "sliding_window": 3,
    "layer_types": ["sliding_attention", "full_attention"],
}
GPT2 = {
    "model_type": "gpt2",
    "vocab_size": 23,
    "n_positions": 14,
    "n_embd": 12,
    "n_layer": 2,
    "n_head": 3,
    "n_inner": 18,
    "eos_token_id": None,
}
BERT = {
    "model_type": "bert",
    "vocab_size": 23,
    "max_position_embeddings": 14,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 18,
}
# Together these cover biases, q and k norms, windows, tied heads and Gemma's norms.
KINDS: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "qwen3": {**WINDOWED, "tie_word_embeddings": True},
    "gemma": {},
}


def config(kind: str = "llama", **fields: Any) -> Any:
    """Returns a config of a kind."""
    if kind in ("gpt2", "bert"):
        return read_config({**(GPT2 if kind == "gpt2" else BERT), **fields})
    return read_config({"model_type": kind, **FIELDS, **KINDS.get(kind, {}), **fields})


def tensors(model_config: Config, seed: int = 0, dtype: Any = np.float32) -> dict[str, np.ndarray]:
    """Returns random tensors by PyTorch's names, norms and biases included."""
    rng = np.random.default_rng(seed)
    by_name = {}
    for path, leaf in skeleton(MODELS[type(model_config)], model_config)[1].items():
        shape = leaf.shape[::-1] if is_transposed(model_config, path) else leaf.shape
        center = 1 - getattr(model_config, "norm_offset", 0) if path[-1] == "scale" else 0
        by_name[torch_name(path)] = (center + 0.4 * rng.normal(size=shape)).astype(dtype)
    return by_name


def model(kind: str = "llama", *, seed: int = 0, dtype: Any = np.float32, **fields: Any) -> Any:
    """Returns a random model of a kind."""
    kind_config = config(kind, **fields)
    return from_torch(kind_config, tensors(kind_config, seed, dtype))


@nnx.jit
def run(model: Any, tokens: jax.Array, positions: jax.Array | None = None) -> jax.Array:
    """Returns the logits, compiled once for all models of one structure."""
    return model(tokens, positions=positions)


def tokens(seed: int = 0, rows: int = 2, count: int = 9) -> jax.Array:
    """Returns random tokens."""
    ids = np.random.default_rng(seed).integers(0, FIELDS["vocab_size"], (rows, count))
    return jnp.asarray(ids, jnp.int32)


def write(folder: Path, tensors: Mapping[str, np.ndarray], shards: int = 1, **fields: Any) -> Path:
    """Writes a Hugging Face folder with these tensors, in a given number of files."""
    folder.mkdir(exist_ok=True)
    values = {"model_type": "llama", **FIELDS, **KINDS["llama"], **fields}
    (folder / "config.json").write_text(json.dumps(values))
    if shards == 1:
        save_file(dict(tensors), folder / "model.safetensors")
        return folder
    weight_map = {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        part = dict(list(tensors.items())[i::shards])
        save_file(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
