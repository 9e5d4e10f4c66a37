"""Bases: a small model in every form in which models are stored on disk."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..tensorfile import Tensor, encoded, pack

__all__ = [
    "MODULES",
    "OTHERS",
    "config",
    "drawn",
    "folder",
    "image_file",
    "mxfp4_folder",
    "packed_folder",
    "sharded",
]

# Modules that adapters change, with the shapes (out, in) of their weights.
MODULES: dict[str, tuple[int, ...]] = {
    f"model.layers.{i}.{name}": shape
    for i in range(2)
    for name, shape in (
        ("self_attn.q_proj", (6, 4)),
        ("self_attn.k_proj", (4, 4)),
        ("mlp.down_proj", (4, 8)),
    )
}
# The other tensors.
OTHERS: dict[str, tuple[int, ...]] = {
    "model.embed_tokens.weight": (8, 4),
    "model.norm.weight": (4,),
    "score.weight": (3, 4),
    **{f"model.layers.{i}.self_attn.q_proj.bias": (6,) for i in range(2)},
}
_SITES = {
    "mid.attn_1.to_q": (6, 4),
    "mid.attn_1.to_k": (4, 4),
    "proj": (6, 4),
    "conv": (6, 4, 3, 1),
}


def drawn(name: str, *shape: int) -> np.ndarray:
    """Returns numbers around 1 that depend only on the name."""
    seed = [ord(letter) for letter in name]
    return np.random.default_rng([*seed, *shape]).normal(size=shape).astype(np.float32)


def config(**fields: Any) -> bytes:
    """Returns a config.json."""
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4,
        "num_hidden_layers": 2, "vocab_size": 8, "tie_word_embeddings": False,
        "torch_dtype": "float32", **fields,
    }  # fmt: skip
    return json.dumps(config, indent=2).encode()


def _tensors(dtype: str) -> dict[str, Tensor]:
    weights = {f"{name}.weight": shape for name, shape in MODULES.items()}
    return {
        name: encoded(drawn(name, *shape), dtype)
        for name, shape in sorted({**weights, **OTHERS}.items())
    }


def side_files(**fields: Any) -> dict[str, bytes]:
    """Returns the files next to a model's tensors."""
    return {
        "base/config.json": config(**fields),
        "base/generation_config.json": b'{"do_sample": false}',
        "base/tokenizer.json": b'{"version": "1.0"}',
    }


def folder(dtype: str = "F32") -> dict[str, bytes]:
    """Returns a folder with one file of tensors."""
    data = pack(_tensors(dtype), {"format": "pt"})
    return {"base/model.safetensors": data, **side_files()}


def sharded(dtype: str = "BF16") -> dict[str, bytes]:
    """Returns a folder with three shards and their index."""
    tensors = _tensors(dtype)
    names = [list(tensors)[i::3] for i in range(3)]
    files, places = {}, {}
    for i, shard_names in enumerate(names, 1):
        file = f"model-{i:05}-of-00003.safetensors"
        files[f"base/{file}"] = pack(
            {name: tensors[name] for name in shard_names}, {"format": "pt"}
        )
        places |= dict.fromkeys(shard_names, file)
    size = sum(len(tensor.data) for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": places}
    return {
        **files,
        "base/model.safetensors.index.json": json.dumps(index).encode(),
        **side_files(),
    }


def image_file(dtype: str = "F16") -> dict[str, bytes]:
    """Returns a single file like a U-Net's, whose names differ in dots and underscores."""
    names = {f"{name}.weight": shape for name, shape in _SITES.items()}
    tensors = {name: encoded(drawn(name, *shape), dtype) for name, shape in names.items()}
    tensors["norm.weight"] = encoded(drawn("norm.weight", 4), "F32")
    return {"base.safetensors": pack(tensors, {"format": "pt"})}


def mxfp4_folder() -> dict[str, bytes]:
    """Returns a folder with experts in MXFP4, as in gpt-oss."""
    tensors = _tensors("BF16")
    random = np.random.default_rng(4)
    for name, out in (("gate_up_proj", 4), ("down_proj", 2)):
        experts = f"model.layers.0.mlp.experts.{name}"
        tensors[f"{experts}_blocks"] = encoded(random.integers(0, 256, (2, out, 2, 16)), "U8")
        tensors[f"{experts}_scales"] = encoded(random.integers(120, 131, (2, out, 2)), "U8")
    order = sorted(tensors, key=lambda name: (tensors[name].dtype, name))
    data = pack({name: tensors[name] for name in order}, {"format": "pt"})
    settings = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    fields: Mapping[str, Any] = {"quantization_config": settings, "torch_dtype": "bfloat16"}
    return {"base/model.safetensors": data, **side_files(**fields)}


def packed_folder(method: str) -> dict[str, bytes]:
    """Returns a folder with packed layers: ``fp8-tensor``, ``fp8-block`` or ``fp8-row``."""
    tensors = _tensors("BF16")
    blocks = {"fp8-tensor": None, "fp8-block": (2, 2), "fp8-row": None}[method]
    for name, (out, size) in MODULES.items():
        weight = tensors.pop(f"{name}.weight").numbers
        shape = {
            "fp8-tensor": (1,), "fp8-row": (out, 1), "fp8-block": (out // 2, size // 2),
        }[method]  # fmt: skip
        scales = np.abs(drawn(name + "scale", *shape)) / 64 + 1 / 128
        run = () if shape == (1,) else (out // shape[0], size // shape[1])
        padded = np.kron(scales, np.ones(run)) if run else scales.reshape(1, 1)
        tensors[f"{name}.weight"] = encoded(np.clip(weight / padded, -440, 440), "F8_E4M3")
        tensors[f"{name}.weight_scale_inv"] = encoded(scales, "F32")
    settings: dict[str, Any] = {"quant_method": "fp8", "activation_scheme": "dynamic"}
    if blocks:
        settings["weight_block_size"] = list(blocks)
    order = sorted(tensors, key=lambda name: (-len(tensors[name].data), name))
    data = pack({name: tensors[name] for name in order}, {"format": "pt"})
    fields: Mapping[str, Any] = {"quantization_config": settings, "torch_dtype": "bfloat16"}
    return {"base/model.safetensors": data, **side_files(**fields)}
