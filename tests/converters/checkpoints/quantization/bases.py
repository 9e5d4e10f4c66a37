"""Packed bases: those of the golden, laid out as folders, and weights packed by hand."""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from jaxmix.converters.checkpoints.huggingface import read_checkpoint
from jaxmix.converters.checkpoints.quantization import find_packed

from ....goldens.archive import Archive

__all__ = ["CASES", "GOLDEN", "packed", "read", "save", "unpacked"]

GOLDEN = Archive("packed")
CASES: dict[str, dict[str, Any]] = GOLDEN.json("cases")


def packed(case: str, module: str = "") -> dict[str, np.ndarray]:
    """Returns a case's tensors under a module, as a checkpoint stores them."""
    with tempfile.TemporaryDirectory() as folder:
        # From a file, since safetensors reads no bfloat16 from bytes into NumPy.
        path = Path(folder, "packed.safetensors")
        path.write_bytes(GOLDEN.zip.read(f"{case}/packed"))
        return {f"{module}{name}": tensor for name, tensor in load_file(path).items()}


def unpacked(case: str) -> np.ndarray:
    """Returns the weights that the quantization's own library unpacks."""
    return GOLDEN.tensors(f"{case}/unpacked")[""]


def read(folder: Path, name: str = "proj.weight") -> np.ndarray:
    """Returns an unpacked weight."""
    readout = find_packed(read_checkpoint(folder))
    assert not readout.problems
    return readout.packed[name].read()


def save(
    folder: Path, tensors: dict[str, Any], settings: dict[str, Any] | None, **config: Any
) -> Path:
    """Writes a folder of two shards, with the settings in its config.json."""
    folder.mkdir()
    fields = {"model_type": "llama", **config}
    fields |= {"quantization_config": settings} if settings is not None else {}
    (folder / "config.json").write_text(json.dumps(fields))
    names = sorted(tensors)
    weight_map: dict[str, str] = {}
    for number, part in enumerate((names[::2], names[1::2])):
        file = f"model-{number + 1}.safetensors"
        shard = {name: np.ascontiguousarray(tensors[name]) for name in part}
        save_file(shard, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    size = sum(tensor.nbytes for tensor in tensors.values())
    count = sum(tensor.size for tensor in tensors.values())
    index = {
        "metadata": {"total_size": size, "total_parameters": count},
        "weight_map": {name: weight_map[name] for name in tensors},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
