"""Files of a checkpoint folder: single, sharded and damaged."""

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from jaxmix.errors import CheckpointError
from jaxmix.models import read_config, read_tensors, tensor_files

from ..messages import full_text
from .tiny import write

TENSORS = {
    "b.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a.weight": np.arange(4).astype(ml_dtypes.bfloat16),
    "c.bias": np.ones((1, 5), np.float16),
}


def reindex(folder: Path, **changes: Any) -> Path:
    """Maps some tensors to other files in the index; None removes a tensor."""
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"] |= changes
    index["weight_map"] = {k: v for k, v in index["weight_map"].items() if v is not None}
    path.write_text(json.dumps(index))
    return path


@pytest.mark.parametrize("shards", [1, 2])
def test_tensors_are_read(shards: int, tmp_path: Path) -> None:
    tensors = read_tensors(write(tmp_path, TENSORS, shards))
    assert sorted(tensors) == sorted(TENSORS)
    assert len(tensors) == 3
    for name, array in tensors.items():
        assert array.dtype == TENSORS[name].dtype
        np.testing.assert_array_equal(array, TENSORS[name])
    assert repr(tensors).startswith("<3 tensors in model")
    with pytest.raises(KeyError):
        tensors["d"]


def test_tensor_files_gives_the_shard_of_each_tensor(tmp_path: Path) -> None:
    files = tensor_files(write(tmp_path, TENSORS, 2))
    assert {name: file.name[:11] for name, file in files.items()} == {
        "b.weight": "model-00001",
        "a.weight": "model-00002",
        "c.bias": "model-00001",
    }
    assert all(file.parent == tmp_path for file in files.values())


def test_links_are_followed(tmp_path: Path) -> None:
    """The hub's cache consists of links out of the folder."""
    blobs = write(tmp_path / "blobs", TENSORS, 2)
    (tmp_path / "snapshot").mkdir()
    for file in blobs.iterdir():
        (tmp_path / "snapshot" / file.name).symlink_to(file)
    assert len(dict(read_tensors(tmp_path / "snapshot"))) == 3


def test_missing_files_are_reported(tmp_path: Path) -> None:
    folder = tmp_path / "none"
    with pytest.raises(
        CheckpointError,
        match=full_text(
            f"{tmp_path}/none has no config.json; found no such folder.\n"
            "Pass a folder that transformers' save_pretrained wrote."
        ),
    ):
        read_config(folder)
    with pytest.raises(
        CheckpointError,
        match=full_text(
            f"{tmp_path}/none has neither model.safetensors nor "
            "model.safetensors.index.json, nor diffusers' "
            "diffusion_pytorch_model.safetensors; found no such folder. "
            "Pass a folder that transformers' save_pretrained wrote."
        ),
    ):
        tensor_files(folder)
    folder.mkdir()
    with pytest.raises(
        CheckpointError,
        match=full_text(
            f"{tmp_path}/none has neither model.safetensors nor "
            "model.safetensors.index.json, nor diffusers' "
            "diffusion_pytorch_model.safetensors; found an empty folder. "
            "Pass a folder that transformers' save_pretrained wrote."
        ),
    ):
        tensor_files(folder)
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(
        CheckpointError,
        match=full_text(
            f"{tmp_path}/none has neither model.safetensors nor "
            "model.safetensors.index.json, nor diffusers' "
            "diffusion_pytorch_model.safetensors; found "
            "pytorch_model.bin. jaxmix does not read .bin files, since "
            "they are pickles. Load the folder with transformers and "
            "save it with save_pretrained, which writes safetensors."
        ),
    ):
        tensor_files(folder)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path, TENSORS)
    file = folder / "model.safetensors"
    content = file.read_bytes()
    size, header_size = len(content), 8 + int.from_bytes(content[:8], "little")
    problems = {
        content[:-3]: f"it ends after {size - 3} of {size} bytes. Was the download interrupted?",
        content[:20]: f"it ends after 20 of {header_size} bytes. Was the download interrupted?",
        b"": "it is empty. Was the download interrupted?",
        b"\xff" * 64: "Error while deserializing header: header too large.",
    }
    for damaged, problem in problems.items():
        file.write_bytes(damaged)
        message = f"{file} is not a complete safetensors file: {problem} Download or save it again."
        with pytest.raises(CheckpointError, match=full_text(message)):
            read_tensors(folder)
    config = folder / "config.json"
    for content in (b"{", b"\xff\xfe"):
        config.write_bytes(content)
        with pytest.raises(ValueError) as in_python:
            json.loads(content.decode())
        message = f"{config} is not JSON: {in_python.value}. Save or download it again."
        with pytest.raises(CheckpointError, match=full_text(message)):
            read_config(folder)
    config.write_text("[]")
    with pytest.raises(
        CheckpointError, match=full_text(f"{config} holds a list, expected a JSON object.")
    ):
        read_config(folder)


def test_missing_shard_is_reported(tmp_path: Path) -> None:
    folder = write(tmp_path, TENSORS, 2)
    (folder / "model-00002-of-00002.safetensors").unlink()
    message = (
        f"{folder}/model-00002-of-00002.safetensors is missing; found config.json, "
        "model-00001-of-00002.safetensors, model.safetensors.index.json. Download the complete "
        "folder again."
    )
    with pytest.raises(CheckpointError, match=full_text(message)):
        tensor_files(folder)


def test_wrong_index_is_refused(tmp_path: Path) -> None:
    """Tensors in another file, in none, or missing from the index are all listed."""
    folder = write(tmp_path, TENSORS, 2)
    first, second = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
    reindex(folder, **{"b.weight": second, "d.weight": first, "c.bias": None})
    with pytest.raises(CheckpointError) as caught:
        tensor_files(folder)
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("model.safetensors.index.json and its shards disagree:")
    assert lines[1:4] == [
        f"  b.weight: in {first}, the index says {second}",
        f"  c.bias: in {first}, the index says none",
        f"  d.weight: in none, the index says {first}",
    ]
    assert "Are files of two checkpoints mixed?" in lines[4]


WRONG_MAP = (
    ": weight_map is dict, expected an object that maps names of tensors to names of files. "
    "Download or save it again."
)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("[]", " holds a list, expected a JSON object."),
        ('{"weight_map": {}}', WRONG_MAP),
        ('{"weight_map": {"a": 1}}', WRONG_MAP),
    ],
)
def test_invalid_index_is_refused(content: str, problem: str, tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(content)
    with pytest.raises(CheckpointError, match=full_text(f"{index}{problem}")):
        tensor_files(tmp_path)


@pytest.mark.parametrize(
    "file", ["../x.safetensors", "/etc/x", "a/../../x", "..\\x", "C:x", "", "a\0b", "a\ud800b"]
)
def test_index_with_outside_paths_is_refused(file: str, tmp_path: Path) -> None:
    path = reindex(write(tmp_path, TENSORS, 2), **{"a.weight": file})
    with pytest.raises(CheckpointError) as caught:
        tensor_files(tmp_path)
    assert f"{path}: files outside its folder:\n  a.weight: {file}" in str(caught.value)
    assert "Do not trust this checkpoint" in str(caught.value)


def test_unsupported_dtype_fails_on_access(tmp_path: Path) -> None:
    """Tensors are read lazily, so the other tensors stay readable."""
    header = json.dumps({"a": {"dtype": "F8_E8M0", "shape": [2], "data_offsets": [0, 2]}}).encode()
    blob = len(header).to_bytes(8, "little") + header + b"\0\0"
    (tmp_path / "model.safetensors").write_bytes(blob)
    tensors = read_tensors(tmp_path)
    message = (
        f"{tmp_path}/model.safetensors: a has dtype F8_E8M0, which NumPy does not have. Expected "
        "float64, float32, float16 or bfloat16. Save the checkpoint unquantized."
    )
    with pytest.raises(CheckpointError, match=full_text(message)):
        tensors["a"]
