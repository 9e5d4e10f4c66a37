"""Tiny models with Hugging Face's names: configs, distinct weights, adapters."""

from collections.abc import Iterator
from typing import Any

import numpy as np

import jaxmix
from jaxmix import Adapter
from jaxmix.families import OFT, LoRA

__all__ = ["CONFIGS", "SIZES", "adapters", "linears", "shapes", "state", "tokens"]

# Every two of these differ, but for the number of layers.
SIZES = {"d": 12, "n": 4, "k": 2, "h": 6, "f": 20, "v": 32}
_DECODER: dict[str, Any] = {
    "hidden_size": 12,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "intermediate_size": 20,
    "vocab_size": 32,
    "num_hidden_layers": 2,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "rope_theta": 10000.0,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "torch_dtype": "float32",
}
_GEMMA = {**_DECODER, "hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": True}
_GEMMA2 = {**_GEMMA, "sliding_window": 16, "query_pre_attn_scalar": 6}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**_DECODER, "model_type": "llama", "architectures": ["LlamaForCausalLM"]},
    "qwen2": {**_DECODER, "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]},
    "qwen3": {**_DECODER, "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]},
    "gemma": {**_GEMMA, "model_type": "gemma", "architectures": ["GemmaForCausalLM"]},
    "gemma2": {**_GEMMA2, "model_type": "gemma2", "architectures": ["Gemma2ForCausalLM"]},
    "gemma3": {**_GEMMA2, "model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"]},
}
CONFIGS["gemma3_deep"] = {**CONFIGS["gemma3"], "num_hidden_layers": 8}
CONFIGS["llama_old"] = {**CONFIGS["llama"], "hidden_size": 24}
# Some have no head_dim of their own for these; google-tunix has its own base of rotations.
CONFIGS["llama"]["hidden_size"] = CONFIGS["qwen2"]["hidden_size"] = 24
CONFIGS["llama"]["rope_theta"] = 1000000.0
CONFIGS["qwen3"]["rope_theta"] = 1000000.0
_LINEAR = {
    "self_attn.q_proj": ("nh", "d"),
    "self_attn.k_proj": ("kh", "d"),
    "self_attn.v_proj": ("kh", "d"),
    "self_attn.o_proj": ("d", "nh"),
    "mlp.gate_proj": ("f", "d"),
    "mlp.up_proj": ("f", "d"),
    "mlp.down_proj": ("d", "f"),
}


def shapes(kind: str, layers: int | None = None) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Returns the name and shape of every tensor of a checkpoint."""
    config = CONFIGS[kind]
    sizes = {**SIZES, "d": config["hidden_size"]}

    def shape(*axes: str) -> tuple[int, ...]:
        return tuple(int(np.prod([sizes[letter] for letter in axis])) for axis in axes)

    yield "model.embed_tokens.weight", shape("v", "d")
    yield "model.norm.weight", shape("d")
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", shape("v", "d")
    norms = ["input_layernorm", "post_attention_layernorm"]
    if kind.startswith(("gemma2", "gemma3")):
        norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
    for i in range(config["num_hidden_layers"] if layers is None else layers):
        for module, axes in _LINEAR.items():
            yield f"model.layers.{i}.{module}.weight", shape(*axes)
            if kind == "qwen2" and module[-6:] in ("q_proj", "k_proj", "v_proj"):
                yield f"model.layers.{i}.{module}.bias", shape(axes[0])
        for norm in norms:
            yield f"model.layers.{i}.{norm}.weight", shape("d")
        if kind.startswith(("qwen3", "gemma3")):
            yield f"model.layers.{i}.self_attn.q_norm.weight", shape("h")
            yield f"model.layers.{i}.self_attn.k_norm.weight", shape("h")


def state(kind: str, layers: int | None = None) -> dict[str, np.ndarray]:
    """Returns a checkpoint of random weights."""
    rng = np.random.default_rng(len(kind))
    tensors = {}
    for name, shape in shapes(kind, layers):
        center = 1.0 if len(shape) == 1 and "norm" in name and "gemma" not in kind else 0.0
        tensors[name] = (center + 0.3 * rng.normal(size=shape)).astype(np.float32)
    return tensors


def linears(kind: str, layers: int | None = None) -> dict[str, tuple[int, int]]:
    """Returns the linear modules of all layers, and (out, in) of each."""
    return {
        name.removesuffix(".weight"): (shape[0], shape[1])
        for name, shape in shapes(kind, layers)
        if ".layers." in name and len(shape) == 2
    }


def adapters(kind: str, layers: int | None = None) -> jaxmix.Mix:
    """Returns a LoRA, an OFT and a DoRA at every linear module."""
    rng = np.random.default_rng(1 + len(kind))

    def normal(*shape: int) -> Any:
        return (0.3 * rng.normal(size=shape)).astype(np.float32)

    sites = linears(kind, layers)
    lora = {s: LoRA(normal(2, i), normal(o, 2), 0.8) for s, (o, i) in sites.items()}
    oft = {s: OFT(normal(i // 4, 6), i) for s, (_, i) in sites.items()}
    dora = {
        s: LoRA(normal(2, i), normal(o, 2), 0.5, magnitude=1 + np.abs(normal(o)))
        for s, (o, i) in sites.items()
    }
    return jaxmix.mix(
        Adapter(lora, 0.9, "lora"), Adapter(oft, 0.7, "oft"), Adapter(dora, 0.6, "dora")
    )


def tokens() -> np.ndarray:
    """Returns a batch of two texts."""
    return np.random.default_rng(9).integers(2, SIZES["v"], (2, 7)).astype(np.int32)
