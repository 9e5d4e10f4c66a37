"""Side files of a merge: other modules are copied, duplicates of the weights are not."""

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

import jaxmix
from jaxmix.converters.checkpoints.huggingface import read_checkpoint
from jaxmix.converters.checkpoints.side_files import side_files

from ..bases import Adapters, load, mixed, weights

DENSE = {"linear.weight": np.ones((3, 6), np.float32), "linear.bias": np.ones(3, np.float32)}


def sides(folder: Path) -> tuple[list[str], dict[str, str]]:
    """Returns the files copied besides tokenizer and configs, and the files that are left out."""
    copied, left_out = side_files(read_checkpoint(folder))
    new = [name for name in copied if Path(name).suffix not in (".json", ".md", ".model", ".jinja")]
    return new, dict(line.split(": ", 1) for line in left_out)


def save(folder: Path, name: str, tensors: dict[str, Any]) -> None:
    """Writes a safetensors file into the folder."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / name)


def torch_archive(path: Path, names: Any, *, zipped: bool = True) -> None:
    """Writes the parts of a `torch.save` file that hold the tensors' names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not zipped:
        parts = (119547037146038801333356, 1001, {"little_endian": True}, dict.fromkeys(names))
        path.write_bytes(b"".join(pickle.dumps(part, protocol=2) for part in parts))
        return
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(dict.fromkeys(names), protocol=2))


def test_other_modules_are_copied(base: Path) -> None:
    """Weights of other modules in any format, in folders and next to the checkpoint."""
    save(base, "2_Dense/model.safetensors", DENSE)
    torch_archive(base / "3_Dense/pytorch_model.bin", DENSE)
    save(base, "value_head.safetensors", {"v_head.summary.weight": DENSE["linear.weight"]})
    torch_archive(base / "colbert_linear.pt", ["weight", "bias"])
    (base / "campplus.onnx").write_bytes(b"onnx")
    (base / "speech/model.gguf").parent.mkdir()
    (base / "speech/flow.pt").write_bytes(b"not an archive")
    names, left_out = sides(base)
    assert names == [
        "campplus.onnx",
        "colbert_linear.pt",
        "value_head.safetensors",
        "2_Dense/model.safetensors",
        "3_Dense/pytorch_model.bin",
        "speech/flow.pt",
    ]
    assert left_out == {}


def test_listed_module_is_not_a_duplicate(base: Path) -> None:
    """A folder in modules.json is a separate module, even with the same tensors."""
    save(base, "query/model.safetensors", weights())
    save(base, "other/model.safetensors", weights())
    modules = [{"path": ""}, {"path": "query"}, {"name": "no path"}]
    (base / "modules.json").write_text(json.dumps(modules))
    names, left_out = sides(base)
    assert names == ["query/model.safetensors"]
    assert left_out == {"other/model.safetensors": "weights that are still the base's"}


@pytest.mark.parametrize(
    ("dtype", "scale", "is_copy"),
    [
        (np.float32, 1, True),
        (np.float16, 1, True),
        (ml_dtypes.bfloat16, 1, True),
        (np.float32, 1.5, False),
        (np.float16, 1.5, False),
    ],
)
def test_same_tensors_are_duplicates(dtype: Any, scale: float, is_copy: bool, base: Path) -> None:
    """A cast is a duplicate; other numbers under the same names are another model."""
    tensors = {
        name: (x * scale).astype(dtype) if x.dtype == np.float32 else x
        for name, x in weights().items()
    }
    save(base, "half/weights.safetensors", tensors)
    assert ("half/weights.safetensors" in sides(base)[0]) is not is_copy


def test_duplicates_are_left_out(base: Path) -> None:
    """Names decide at the top and in export folders, contents elsewhere."""
    names = [name for name in weights() if name != "model.positions"]
    exports = ["tf_model.h5", "flax_model.msgpack", "rust_model.ot", "x.Q4_K_M.gguf"]
    exports += ["model.fp16.safetensors", "consolidated.00.pth", "model_q4.onnx"]
    exports += ["original/consolidated.00.pth", "onnx/decoder.onnx_data", "openvino/openvino_m.xml"]
    exports += ["onnx-int8/any.bin", "fp16/damaged.safetensors"]
    for name in exports:
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_text("x")
    torch_archive(base / "checkpoint-5/state.bin", names)
    torch_archive(base / "old/state.ckpt", names, zipped=False)
    np.savez(base / "old/all.npz", **dict.fromkeys(names, np.ones(1)))
    np.savez(base / "old/voices.npz", one=np.ones(1))
    copied, left_out = sides(base)
    assert copied == ["old/voices.npz"]
    assert set(left_out) == {*exports, "checkpoint-5/state.bin", "old/state.ckpt", "old/all.npz"}
    assert set(left_out.values()) == {"weights that are still the base's"}


def test_trainer_state_and_adapter_are_left_out(base: Path) -> None:
    """Neither belongs to a merged model; an adapter in another folder is kept."""
    for name in ("optimizer.pt", "rng_state_0.pth", "training_args.bin"):
        (base / name).write_text("x")
    for folder in (base, base / "vision-lora"):
        folder.mkdir(exist_ok=True)
        (folder / "adapter_config.json").write_text("{}")
        save(folder, "adapter_model.safetensors", DENSE)
    copied, left_out = sides(base)
    assert copied == ["vision-lora/adapter_model.safetensors"]
    assert left_out == {
        "adapter_config.json": "an adapter's config",
        "adapter_model.safetensors": "an adapter's weights",
        "optimizer.pt": "a trainer's state",
        "rng_state_0.pth": "a trainer's state",
        "training_args.bin": "a trainer's state",
    }


def test_index_is_kept_with_its_files(base: Path) -> None:
    """Without any of its files an index would point to nothing."""
    save(base, "head/a.safetensors", DENSE)
    torch_archive(base / "pytorch_model-00001-of-00001.bin", weights())
    for name, file in {
        "head/a.safetensors.index.json": "a.safetensors",
        "pytorch_model.bin.index.json": "pytorch_model-00001-of-00001.bin",
    }.items():
        (base / name).write_text(json.dumps({"weight_map": {"x": file}}))
    (base / "documents.index.json").write_text("[]")
    copied, left_out = side_files(read_checkpoint(base))
    assert {"head/a.safetensors.index.json", "documents.index.json"} <= set(copied)
    assert [line.split(":")[0] for line in left_out] == [
        "pytorch_model-00001-of-00001.bin",
        "pytorch_model.bin.index.json",
    ]


def test_merge_copies_and_verifies_other_modules(
    base: Path, adapters: Adapters, tmp_path: Path
) -> None:
    """Other modules are copied byte for byte; a change is a problem in verification."""
    save(base, "2_Dense/model.safetensors", DENSE)
    mix, out = mixed(adapters), tmp_path / "out"
    merged = jaxmix.merge_checkpoint(base, mix, out, verify=True)
    assert merged.left_out == () and merged.shards == ("model.safetensors",)
    loaded = load(out / "2_Dense")
    assert all(np.array_equal(loaded[name], array) for name, array in DENSE.items())
    save(out, "2_Dense/model.safetensors", {**DENSE, "linear.bias": np.zeros(3, np.float32)})
    proof = jaxmix.verify_merge(base, mix, out)
    assert proof.problems == ("2_Dense/model.safetensors differs from the base's",)
