"""Which files of a folder go along with a merge: other modules do, copies of the weights do not."""

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
    """Which files are copied next to tokenizer and configs, which are not, and why."""
    found, left_out = side_files(read_checkpoint(folder))
    new = [name for name in found if Path(name).suffix not in (".json", ".md", ".model", ".jinja")]
    return new, dict(line.split(": ", 1) for line in left_out)


def save(folder: Path, name: str, tensors: dict[str, Any]) -> None:
    """A safetensors file somewhere in the folder."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / name)


def torch_archive(path: Path, names: Any, *, zipped: bool = True) -> None:
    """What `torch.save` writes, as far as the names of the tensors go."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not zipped:
        parts = (119547037146038801333356, 1001, {"little_endian": True}, dict.fromkeys(names))
        path.write_bytes(b"".join(pickle.dumps(part, protocol=2) for part in parts))
        return
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(dict.fromkeys(names), protocol=2))


def test_modules_of_their_own_are_copied(base: Path) -> None:
    """Weights in any form, in folders and next to the checkpoint."""
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


def test_a_listed_module_is_no_copy(base: Path) -> None:
    """A folder in modules.json may hold the very same tensors: it is a module of its own."""
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
def test_the_same_tensors(dtype: Any, scale: float, is_copy: bool, base: Path) -> None:
    """A cast is a copy; other numbers under the same names are another model."""
    tensors = {
        name: (x * scale).astype(dtype) if x.dtype == np.float32 else x
        for name, x in weights().items()
    }
    save(base, "half/weights.safetensors", tensors)
    assert ("half/weights.safetensors" in sides(base)[0]) is not is_copy


def test_copies_are_left_out(base: Path) -> None:
    """Other formats' names at the top and in export folders; elsewhere what has our names."""
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
    found, left_out = sides(base)
    assert found == ["old/voices.npz"]
    assert set(left_out) == {*exports, "checkpoint-5/state.bin", "old/state.ckpt", "old/all.npz"}
    assert set(left_out.values()) == {"weights that are still the base's"}


def test_a_trainers_state_and_an_adapter(base: Path) -> None:
    """Neither belongs to a merged model; an adapter in a folder of its own is the model's."""
    for name in ("optimizer.pt", "rng_state_0.pth", "training_args.bin"):
        (base / name).write_text("x")
    for folder in (base, base / "vision-lora"):
        folder.mkdir(exist_ok=True)
        (folder / "adapter_config.json").write_text("{}")
        save(folder, "adapter_model.safetensors", DENSE)
    found, left_out = sides(base)
    assert found == ["vision-lora/adapter_model.safetensors"]
    assert left_out == {
        "adapter_config.json": "an adapter's config",
        "adapter_model.safetensors": "an adapter's weights",
        "optimizer.pt": "a trainer's state",
        "rng_state_0.pth": "a trainer's state",
        "training_args.bin": "a trainer's state",
    }


def test_an_index_goes_with_its_files(base: Path) -> None:
    """Without any of these files, it would point to nothing."""
    save(base, "head/a.safetensors", DENSE)
    torch_archive(base / "pytorch_model-00001-of-00001.bin", weights())
    for name, file in {
        "head/a.safetensors.index.json": "a.safetensors",
        "pytorch_model.bin.index.json": "pytorch_model-00001-of-00001.bin",
    }.items():
        (base / name).write_text(json.dumps({"weight_map": {"x": file}}))
    (base / "documents.index.json").write_text("[]")
    found, left_out = side_files(read_checkpoint(base))
    assert {"head/a.safetensors.index.json", "documents.index.json"} <= set(found)
    assert [line.split(":")[0] for line in left_out] == [
        "pytorch_model-00001-of-00001.bin",
        "pytorch_model.bin.index.json",
    ]


def test_a_merge_copies_and_verifies_other_modules(
    base: Path, adapters: Adapters, tmp_path: Path
) -> None:
    """Byte for byte; a change of one is a problem."""
    save(base, "2_Dense/model.safetensors", DENSE)
    mix, out = mixed(adapters), tmp_path / "out"
    merged = jaxmix.merge_checkpoint(base, mix, out, verify=True)
    assert merged.left_out == () and merged.shards == ("model.safetensors",)
    loaded = load(out / "2_Dense")
    assert all(np.array_equal(loaded[name], array) for name, array in DENSE.items())
    save(out, "2_Dense/model.safetensors", {**DENSE, "linear.bias": np.zeros(3, np.float32)})
    proof = jaxmix.verify_merge(base, mix, out)
    assert proof.problems == ("2_Dense/model.safetensors differs from the base's",)
