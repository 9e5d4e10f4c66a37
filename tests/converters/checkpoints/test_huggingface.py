"""Checkpoints: headers, the bytes of tensors, and side files."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxmix.converters.checkpoints.huggingface import read_checkpoint, read_shard
from jaxmix.errors import CheckpointError

from ...messages import full_text

TENSORS = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.asarray(2.5, ml_dtypes.bfloat16),
    "c": np.zeros((0, 3), np.float16),
    "d": np.arange(3),
}


def test_shard_is_its_header_and_its_tensors(tmp_path: Path) -> None:
    """In the order of their bytes, without gaps; an empty tensor and a scalar have a place."""
    save_file(TENSORS, tmp_path / "x.safetensors", metadata={"made": "by hand"})
    shard = read_shard(tmp_path, tmp_path / "x.safetensors")
    data = (tmp_path / "x.safetensors").read_bytes()
    position = len(shard.header)
    assert data.startswith(shard.header) and shard.metadata == {"made": "by hand"}
    for tensor in shard.tensors:
        assert tensor.start == position
        position += tensor.size
        if tensor.name != "d":
            read = tensor.read()
            np.testing.assert_array_equal(read, TENSORS[tensor.name])
            assert read.dtype == TENSORS[tensor.name].dtype
    assert position == len(data) == shard.size
    assert {tensor.name for tensor in shard.tensors} == {*TENSORS}


def test_file_that_became_shorter_is_reported(tmp_path: Path) -> None:
    """After its header was read."""
    path = tmp_path / "x.safetensors"
    save_file({"a": TENSORS["a.weight"]}, path)
    (tensor,) = read_shard(tmp_path, path).tensors
    path.write_bytes(path.read_bytes()[:-1])
    message = (
        f"{path} ends within the tensor a. Was the file changed while it was being read? Merge "
        "again."
    )
    with pytest.raises(CheckpointError, match=full_text(message)):
        tensor.read()


def test_shard_in_a_component_keeps_its_bytes(tmp_path: Path) -> None:
    """Only names change; those in the header stay."""
    save_file(TENSORS, tmp_path / "x.safetensors")
    shard = read_shard(tmp_path, tmp_path / "x.safetensors")
    inner = shard.in_component("unet")
    assert (inner.name, inner.prefix) == ("unet/x.safetensors", "unet.")
    assert [t.name for t in inner.tensors] == [f"unet.{t.name}" for t in shard.tensors]
    assert [(t.file, t.start) for t in inner.tensors] == [(t.file, t.start) for t in shard.tensors]
    assert inner.header == shard.header and shard.metadata == {}


def test_changed_side_files_come_first(tmp_path: Path) -> None:
    """An absent file is an empty object."""
    save_file(TENSORS, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"a": 1}')
    base = read_checkpoint(tmp_path)
    assert base.json("config.json") == {"a": 1} and base.json("x.json") == {}
    changed = type(base)(base.folder, base.shards, texts={"config.json": json.dumps({"b": 2})})
    assert changed.json("config.json") == {"b": 2}
    assert (base.name, read_checkpoint(tmp_path / "model.safetensors").name) == (
        str(tmp_path),
        str(tmp_path / "model.safetensors"),
    )


def test_files_of_other_kinds_are_refused(tmp_path: Path) -> None:
    """A single file must be safetensors, and has no variants."""
    path = tmp_path / "x.txt"
    path.write_text("text")
    message = (
        f"{path} is a file, expected a Hugging Face folder with safetensors, a safetensors file, "
        "or the id of a repository on the hub, 'owner/name'."
    )
    with pytest.raises(CheckpointError, match=full_text(message)):
        read_checkpoint(path)
    save_file(TENSORS, tmp_path / "x.safetensors")
    message = (
        "variant='fp16' chooses among the files of a folder, and "
        f"{tmp_path / 'x.safetensors'} is not a folder. Leave it out."
    )
    with pytest.raises(CheckpointError, match=full_text(message)):
        read_checkpoint(tmp_path / "x.safetensors", "fp16")
