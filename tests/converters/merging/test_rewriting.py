"""Headers, indexes and configs of outputs with other tensors than the base."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load, load_file, save_file

from jaxmix.converters.checkpoints.huggingface import Checkpoint, Shard, Stored, read_checkpoint
from jaxmix.converters.merging.rewriting import (
    adjust_totals,
    with_config,
    with_copy,
    with_tensors,
)

FIRST = {"ä.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "b.bias": np.ones(3, np.float16)}
SECOND = {"c.weight": np.full((4, 2), 0.5, np.float32)}
INDEX = "model.safetensors.index.json"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    """A checkpoint in two shards."""
    weight_map: dict[str, str] = {}
    for i, tensors in enumerate((FIRST, SECOND)):
        file = f"model-0000{i + 1}-of-00002.safetensors"
        save_file(tensors, tmp_path / file, metadata={"format": "pt", "quantized": "fp8"})
        weight_map |= dict.fromkeys(tensors, file)
    total = {"total_size": 62, "total_parameters": 17, "made by": "hand"}
    (tmp_path / INDEX).write_text(json.dumps({"metadata": total, "weight_map": weight_map}))
    config = {"model_type": "x", "quantization": 1, "text_config": {"quantization": 2, "d": 3}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return read_checkpoint(tmp_path)


def written(shard: Shard) -> dict[str, np.ndarray]:
    """Returns the tensors of a shard as it would be written, read by safetensors."""
    data = b"".join(stored.read().tobytes() for stored in shard.tensors)
    return load(shard.header + data)


def test_copy_is_a_valid_tensor_after_its_original(checkpoint: Checkpoint) -> None:
    """The file, the index and its totals have it; the other shard keeps its header."""
    new = with_copy(checkpoint, "head.weight", of="ä.weight")
    first, second = new.shards
    assert set(written(first)) == {*FIRST, "head.weight"}
    np.testing.assert_array_equal(written(first)["head.weight"], FIRST["ä.weight"], strict=True)
    assert second.header is checkpoint.shards[1].header
    assert len(first.header) % 8 == 0 and first.metadata == checkpoint.shards[0].metadata
    index = new.json(INDEX)
    assert index["metadata"] == {"total_size": 86, "total_parameters": 23, "made by": "hand"}
    names = list(checkpoint.json(INDEX)["weight_map"])
    names.insert(names.index("ä.weight") + 1, "head.weight")
    assert list(index["weight_map"]) == names
    assert index["weight_map"]["head.weight"] == first.name
    assert not checkpoint.texts


def test_removed_tensors_leave_the_index_too(checkpoint: Checkpoint) -> None:
    """Metadata that no longer hold are dropped, but only from the file that changes."""
    removed = checkpoint.tensors["b.bias"]

    def change(shard: Shard) -> Iterator[Stored]:
        return (stored for stored in shard.tensors if stored is not removed)

    new = with_tensors(checkpoint, change, adjust_totals((), [removed]), without=["quantized"])
    assert list(written(new.shards[0])) == ["ä.weight"]
    assert [shard.metadata.get("quantized") for shard in new.shards] == [None, "fp8"]
    index = new.json(INDEX)
    assert set(index["weight_map"]) == {"ä.weight", "c.weight"}
    assert (index["metadata"]["total_size"], index["metadata"]["total_parameters"]) == (56, 14)


def test_unknown_totals_stay_unknown() -> None:
    """A total that the base lacks is not invented, and one that is no number is kept."""
    tensor = Stored("x", "F32", (2, 3), Path("x"), 0, 24)
    metadata = {"total_size": "24", "format": "pt"}
    adjust_totals([tensor])(metadata)
    assert metadata == {"total_size": "24", "format": "pt"}


def test_config_changes_without_touching_the_file(checkpoint: Checkpoint) -> None:
    """Fields are removed at both levels, and a second change keeps the first."""
    new = with_config(checkpoint, {"tie": False}, without=["quantization"])
    new = with_config(new, {"labels": 2})
    expected = {"model_type": "x", "text_config": {"d": 3}, "tie": False, "labels": 2}
    assert new.json("config.json") == expected
    assert "quantization" in checkpoint.json("config.json")
    alone = replace(checkpoint, is_file=True)
    assert with_config(alone, {"tie": False}) is alone


def test_same_tensors_keep_their_header(checkpoint: Checkpoint) -> None:
    """Byte for byte, so that a file is only rewritten where tensors differ."""
    new = with_tensors(checkpoint, lambda shard: shard.tensors, lambda _: None)
    assert [shard.header for shard in new.shards] == [s.header for s in checkpoint.shards]
    np.testing.assert_array_equal(
        written(new.shards[1])["c.weight"],
        load_file(checkpoint.folder / new.shards[1].name)["c.weight"],
    )
