"""Small checkpoints and PEFT folders, written by hand: without torch or square shapes."""

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file

import jaxmix

__all__ = [
    "SIDE_FILES",
    "Adapters",
    "contents",
    "header",
    "load",
    "mixed",
    "save_adapter",
    "save_adapters",
    "save_base",
]

Adapters = dict[str, Path]

VOCAB, WIDTH, INNER, OUT, LAYERS = 14, 6, 10, 8, 2
SIDE_FILES: dict[str, str] = {
    "generation_config.json": '{"max_length": 20}',
    "tokenizer.json": '{"model": {"vocab": {"ä": 1}}}',
    "tokenizer.model": "\x00\x01",
    "README.md": "# tiny\r\n",
    "templates/chat.jinja": "{{ x }}",
}


def weights(dtype: Any = np.float32, tied: bool = False) -> dict[str, np.ndarray]:
    """Returns the tensors of a decoder, with biases and a buffer of integers."""
    rng = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, WIDTH)}
    for i in range(LAYERS):
        shapes[f"model.layers.{i}.q_proj.weight"] = (OUT, WIDTH)
        shapes[f"model.layers.{i}.q_proj.bias"] = (OUT,)
        shapes[f"model.layers.{i}.down_proj.weight"] = (WIDTH, INNER)
    shapes["model.norm.weight"] = (WIDTH,)
    if not tied:
        shapes["lm_head.weight"] = (VOCAB, WIDTH)
    tensors: dict[str, np.ndarray] = {
        name: np.asarray(rng.normal(size=shape), dtype) for name, shape in shapes.items()
    }
    return {**tensors, "model.positions": np.arange(5)}


def save_base(
    folder: Path,
    *,
    shards: int = 1,
    dtype: Any = np.float32,
    tied: bool = False,
    extra: dict[str, np.ndarray] | None = None,
    config: dict[str, Any] | None = None,
) -> Path:
    """Writes a Hugging Face folder; in shards a weight and its bias are in different files."""
    tensors = {**weights(dtype, tied), **(extra or {})}
    for name, text in SIDE_FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text.encode())
    fields = {"model_type": "llama", "tie_word_embeddings": tied} if config is None else config
    (folder / "config.json").write_text(json.dumps(fields))
    metadata = {"format": "pt", "made by": "hand"}
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata=metadata)
        return folder
    names, weight_map = list(tensors), {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: tensors[name] for name in names[i::shards]}
        save_file(part, folder / file, metadata=metadata)
        weight_map.update(dict.fromkeys(part, file))
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total, "total_parameters": 1}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def save_adapter(folder: Path, config: dict[str, Any], factors: dict[str, np.ndarray]) -> Path:
    """Writes a PEFT folder."""
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    tensors = {f"base_model.model.{key}": array for key, array in factors.items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def save_adapters(folder: Path) -> dict[str, Path]:
    """Writes a LoRA with biases, a LoHa, an OFT, and LoRAs of the embedding and of the head."""
    rng = np.random.default_rng(1)

    def draw(*shape: int) -> np.ndarray:
        return np.asarray(rng.normal(size=shape) / 2, np.float32)

    lora, loha, oft = {}, {}, {}
    for i in range(LAYERS):
        q, down = f"model.layers.{i}.q_proj", f"model.layers.{i}.down_proj"
        lora |= {f"{q}.lora_A.weight": draw(2, WIDTH), f"{q}.lora_B.weight": draw(OUT, 2)}
        lora |= {f"{q}.lora_B.bias": draw(OUT)}
        loha |= {f"{q}.hada_w1_a": draw(OUT, 2), f"{q}.hada_w1_b": draw(2, WIDTH)}
        loha |= {f"{q}.hada_w2_a": draw(OUT, 2), f"{q}.hada_w2_b": draw(2, WIDTH)}
        oft |= {f"{q}.oft_R.weight": draw(2, 3), f"{down}.oft_R.weight": draw(2, 10)}
    embedding = {
        "model.embed_tokens.lora_embedding_A": draw(2, VOCAB),
        "model.embed_tokens.lora_embedding_B": draw(WIDTH, 2),
    }
    head = {"lm_head.lora_A.weight": draw(2, WIDTH), "lm_head.lora_B.weight": draw(VOCAB, 2)}
    plain = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}
    turn = {"peft_type": "OFT", "r": 0, "oft_block_size": 3, "coft": False, "eps": 6e-5}
    turn |= {"use_cayley_neumann": False, "num_cayley_neumann_terms": 5, "block_share": False}
    return {
        "lora": save_adapter(folder / "lora", {**plain, "lora_bias": True}, lora),
        "loha": save_adapter(folder / "loha", {"peft_type": "LOHA", "r": 2, "alpha": 3}, loha),
        "oft": save_adapter(folder / "oft", turn, oft),
        "embedding": save_adapter(folder / "embedding", plain, embedding),
        "head": save_adapter(folder / "head", plain, head),
    }


def load(folder: Path) -> dict[str, np.ndarray]:
    """Returns all tensors of a folder, read by safetensors; bfloat16 as in ml_dtypes."""
    assert ml_dtypes
    tensors: dict[str, np.ndarray] = {}
    for file in sorted(folder.rglob("*.safetensors")):
        tensors.update(load_file(file))
    return tensors


def contents(folder: Path) -> dict[str, bytes]:
    """Returns all files of a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(files)}


def header(file: Path) -> bytes:
    """Returns the header of a safetensors file."""
    data = file.read_bytes()
    return data[: 8 + int.from_bytes(data[:8], "little")]


def mixed(adapters: Adapters) -> jaxmix.Mix:
    """Returns three kinds with strengths; OFT is in the middle, so the order matters."""
    lora, loha, oft = (jaxmix.load(adapters[name]) for name in ("lora", "loha", "oft"))
    return jaxmix.mix(lora, 0.5 * oft, -0.7 * loha)
