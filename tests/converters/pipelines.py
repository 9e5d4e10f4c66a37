"""Tiny pipelines of diffusers, written by hand from pipelines.json: no diffusers, no torch."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file

from .bases import contents, header, save_adapter

__all__ = [
    "TABLE",
    "assert_merged",
    "attention",
    "dotted",
    "factors",
    "kohya",
    "merged_by_hand",
    "peft_folder",
    "save_pipeline",
    "save_weights",
    "tensors_of",
]

TABLE = Path(__file__).with_name("pipelines.json")
RANK, ALPHA = 2, 3.0


def _table() -> dict[str, Any]:
    return json.loads(TABLE.read_text())


def save_pipeline(
    folder: Path, kind: str, *, shards: int = 1, variant: str = "", dtype: Any = np.float32
) -> Path:
    """Writes a pipeline: weights in the names, sharding and variant of diffusers; side files."""
    row, rng = _table()[kind], np.random.default_rng(0)
    index: dict[str, Any] = {"_class_name": row["_class_name"], "_diffusers_version": "0.42.0"}
    index |= {"force_zeros_for_empty_prompt": True, "image_encoder": [None, None]}
    index |= {"scheduler": ["diffusers", "DDIMScheduler"]}
    for component, fields in row["components"].items():
        index[component] = fields["class"]
        component_folder = folder / component
        component_folder.mkdir(parents=True)
        (component_folder / "config.json").write_text(json.dumps(fields["config"]))
        tensors = {
            name: np.asarray(rng.normal(size=[int(size) for size in shape.split("x")]), dtype)
            for name, shape in fields["tensors"].items()
        }
        save_weights(component_folder, tensors, fields["file"], shards=shards, variant=variant)
    for name in ("scheduler/scheduler_config.json", "tokenizer/vocab.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    return folder


def save_weights(
    folder: Path, tensors: Mapping[str, Any], file: str, *, shards: int = 1, variant: str = ""
) -> None:
    """Writes a component's weights in diffusers' names for shards and variants."""
    stem, part = file.removesuffix(".safetensors"), f".{variant}" if variant else ""
    metadata = {"format": "pt"}
    if shards == 1:
        save_file(dict(tensors), folder / f"{stem}{part}.safetensors", metadata=metadata)
        return
    names, weight_map = list(tensors), {}
    for i in range(shards):
        shard = f"{stem}{part}-{i + 1:05d}-of-{shards:05d}.safetensors"
        shard_tensors = {name: tensors[name] for name in names[i::shards]}
        save_file(shard_tensors, folder / shard, metadata=metadata)
        weight_map |= dict.fromkeys(shard_tensors, shard)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / f"{stem}.safetensors.index{part}.json").write_text(json.dumps(index))


def tensors_of(folder: Path) -> dict[str, np.ndarray]:
    """All tensors of a pipeline, with the component in their names."""
    return {
        f"{file.parent.name}.{name}": tensor
        for file in sorted(folder.glob("*/*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def attention(tensors: Mapping[str, np.ndarray], component: str) -> list[str]:
    """The modules of a component's attention layers, without the component's name."""
    ends = tuple(f".{name}.weight" for name in ("to_q", "to_out.0", "q_proj", "fc2", "q", "o"))
    return [
        name.removeprefix(f"{component}.").removesuffix(".weight")
        for name in tensors
        if name.startswith(f"{component}.") and name.endswith(ends)
    ]


def factors(
    tensors: Mapping[str, np.ndarray],
    component: str,
    key: Callable[[str], str],
    ends: tuple[str, str] = ("lora_down.weight", "lora_up.weight"),
    *,
    seed: int = 1,
    alpha: bool = True,
) -> dict[str, np.ndarray]:
    """LoRA's factors for a component's attention, under the keys of some trainer."""
    rng, arrays = np.random.default_rng(seed), {}
    for module in attention(tensors, component):
        out, width = tensors[f"{component}.{module}.weight"].shape
        arrays[f"{key(module)}.{ends[0]}"] = np.asarray(rng.normal(size=(RANK, width)), np.float32)
        arrays[f"{key(module)}.{ends[1]}"] = np.asarray(rng.normal(size=(out, RANK)), np.float32)
        if alpha:
            arrays[f"{key(module)}.alpha"] = np.asarray(ALPHA, np.float32)
    return arrays


def merged_by_hand(
    tensors: Mapping[str, np.ndarray], *components: str, seed: int = 1, alpha: bool = True
) -> dict[str, np.ndarray]:
    """Base plus the LoRAs of `factors`, in float64."""
    merged = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
    for component in components:
        update = factors(tensors, component, lambda name: name, seed=seed, alpha=alpha)
        for module in attention(tensors, component):
            down, up = (update[f"{module}.lora_{end}.weight"] for end in ("down", "up"))
            scale = ALPHA / RANK if alpha else 1.0
            merged[f"{component}.{module}.weight"] += scale * up.astype(np.float64) @ down
    return merged


KOHYA = {"unet": "lora_unet", "transformer": "lora_unet", "text_encoder": "lora_te1"}
KOHYA |= {"text_encoder_2": "lora_te2"}
PEFT = ("lora_A.weight", "lora_B.weight")


def kohya(file: Path, tensors: dict[str, np.ndarray], *components: str, **prefixes: str) -> Path:
    """A file of kohya's scripts for these components."""
    arrays: dict[str, np.ndarray] = {}
    for component in components:
        prefix = prefixes.get(component, KOHYA[component])
        arrays |= factors(tensors, component, lambda name: f"{prefix}_{name.replace('.', '_')}")  # noqa: B023
    save_file(arrays, file)
    return file


def dotted(file: Path, tensors: dict[str, np.ndarray], **prefixes: str) -> Path:
    """A file with dots in its names, for each component under a prefix."""
    arrays: dict[str, np.ndarray] = {}
    for component, prefix in prefixes.items():
        arrays |= factors(tensors, component, lambda name: prefix + name, PEFT, alpha=False)  # noqa: B023
    save_file(arrays, file)
    return file


def assert_merged(base: Path, out: Path, *components: str, alpha: bool = True) -> None:
    """The output is the base plus the LoRAs of the components; everything else is its bytes."""
    before, files, merged = contents(base), contents(out), tensors_of(out)
    tensors = tensors_of(base)
    right = merged_by_hand(tensors, *components, alpha=alpha)
    changed = {f"{c}.{name}.weight" for c in components for name in attention(tensors, c)}
    assert changed and files.keys() == before.keys()
    for name, tensor in tensors.items():
        if name in changed:
            assert merged[name].dtype == tensor.dtype
            wide = merged[name].astype(np.float64)
            size = np.abs(right[name]).max()
            eps = float(ml_dtypes.finfo(tensor.dtype).eps)
            assert np.abs(wide - right[name]).max() <= 2 * eps * size, name
            assert np.abs(wide - tensor.astype(np.float64)).max() > 0.1, name
        else:
            assert merged[name].tobytes() == tensor.tobytes(), name
    for name, data in files.items():
        if not name.endswith(".safetensors"):
            assert data == before[name], name
        elif name.partition("/")[0] not in components:
            assert data == before[name], name
        else:
            assert header(out / name) == header(base / name)


def peft_folder(folder: Path, tensors: dict[str, np.ndarray], component: str) -> Path:
    """A folder of PEFT, whose names have no component."""
    update = factors(tensors, component, lambda name: name, PEFT, alpha=False)
    return save_adapter(folder, {"peft_type": "LORA", "r": 2, "lora_alpha": 2}, update)
