"""The files of an adapter: shards with an index under either name, and without one."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jaxmix
from jaxmix.converters.adapters.peft.weights import is_adapter_file, is_weights_path
from jaxmix.errors import CheckpointError

from .folders import FORMS, SITE, factors, keyed, packed, refused, save

INDEX = "adapter_model.safetensors.index.json"
SHARDS = ("adapter_model-00001-of-00002.safetensors", "adapter_model-00002-of-00002.safetensors")


def sharded(folder: Path, index: str | None = INDEX) -> Path:
    """A LoRA with one factor in each shard."""
    save(folder)
    (folder / "adapter_model.safetensors").unlink()
    tensors = keyed(factors(FORMS["lora"]))
    for file, (key, array) in zip(SHARDS, tensors.items(), strict=True):
        (folder / file).write_bytes(packed({key: array}))
    if index:
        contents = {
            "metadata": {"total_size": 1},
            "weight_map": dict(zip(tensors, SHARDS, strict=True)),
        }
        (folder / index).write_text(json.dumps(contents))
    return folder


@pytest.mark.parametrize("index", [INDEX, "model.safetensors.index.json", None])
def test_shards_are_joined(index: str | None, tmp_path: Path) -> None:
    """They are joined with either index, and without one if the names are complete."""
    folder = sharded(tmp_path / "style", index)
    for path in (folder, folder / index) if index else (folder,):
        loaded: Any = jaxmix.load(path).updates[SITE]
        np.testing.assert_array_equal(loaded.a, factors(FORMS["lora"])["lora_A.weight"])
        np.testing.assert_array_equal(loaded.b, factors(FORMS["lora"])["lora_B.weight"])
        assert jaxmix.load(path).name == "style"


def test_single_file_takes_precedence(tmp_path: Path) -> None:
    """The shards are then an old copy."""
    folder = sharded(tmp_path)
    save(folder, tensors=keyed({k: 2 * x for k, x in factors(FORMS["lora"]).items()}))
    loaded: Any = jaxmix.load(folder).updates[SITE]
    np.testing.assert_array_equal(loaded.a, 2 * factors(FORMS["lora"])["lora_A.weight"])


@pytest.mark.parametrize("index", [INDEX, None])
def test_missing_shard(index: str | None, tmp_path: Path) -> None:
    """The error names the missing file."""
    folder = sharded(tmp_path, index)
    (folder / SHARDS[1]).unlink()
    message = refused(CheckpointError, folder)
    if index:
        assert message.startswith(f"{folder / SHARDS[1]} is missing; found adapter_config.json")
    else:
        assert message == (
            f"{folder} lacks shards 2 of 2; found {SHARDS[0]}. Download the complete folder again."
        )


def test_index_disagrees(tmp_path: Path) -> None:
    """A shard with more tensors than the index lists, or with fewer, is refused."""
    folder = sharded(tmp_path)
    (folder / SHARDS[0]).write_bytes(packed(keyed(factors(FORMS["lora"]))))
    message = refused(CheckpointError, folder)
    assert f"{folder / INDEX} and its shards disagree:\n" in message
    assert (
        "lora_B.weight: in adapter_model-00001-of-00002.safetensors, adapter_model-00002" in message
    )


def test_index_with_outside_paths(tmp_path: Path) -> None:
    """Nothing outside the folder is opened."""
    folder = sharded(tmp_path / "in")
    contents = {"weight_map": {"a": "../x.safetensors"}}
    (folder / INDEX).write_text(json.dumps(contents))
    message = refused(CheckpointError, folder)
    assert message.startswith(f"{folder / INDEX}: files outside its folder:")


def test_shards_of_two_adapters(tmp_path: Path) -> None:
    """Without an index, shards of two counts, or with the same tensors, are refused."""
    folder = sharded(tmp_path, None)
    (folder / SHARDS[1]).write_bytes((folder / SHARDS[0]).read_bytes())
    message = refused(CheckpointError, folder)
    assert message == (
        f"tensors that are in several shards:\n  "
        f"base_model.model.{SITE}.lora_A.weight: again in {SHARDS[1]}\nAre shards of "
        f"two adapters mixed? Download or save the folder again."
    )
    (folder / "adapter_model-00003-of-00003.safetensors").write_bytes(b"")
    message = refused(CheckpointError, folder)
    assert message.startswith(f"{folder} has shards of several adapters and no index:\n")
    assert message.endswith("\nRemove the old ones.")


def test_index_of_a_model_is_not_used(tmp_path: Path) -> None:
    """The shards of a model next to the adapter are the base."""
    folder = sharded(tmp_path)
    (folder / INDEX).unlink()
    for file in SHARDS:
        (folder / file).rename(folder / file.replace("adapter_", ""))
    contents = {"weight_map": {"a": SHARDS[0].replace("adapter_", "")}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(contents))
    assert f"{folder} has no adapter_model.safetensors" in refused(CheckpointError, folder)


@pytest.mark.parametrize(
    ("name", "is_path", "is_own"),
    [
        ("adapter_model.safetensors", True, True),
        ("adapter_model-00001-of-00002.safetensors", True, True),
        (INDEX, True, True),
        ("model.safetensors.index.json", True, False),
        ("adapter_model.h5", False, True),
        ("ADAPTER.SafeTensors", True, False),
        ("adapter_model2.bin", True, False),
        ("other.safetensors.index.json", False, False),
        ("adapter_config.json", False, False),
    ],
)
def test_files_of_weights_are_recognised_by_name(
    name: str, is_path: bool, is_own: bool, tmp_path: Path
) -> None:
    """A folder of that name is no file."""
    assert is_adapter_file(name) is is_own
    assert not is_weights_path(tmp_path / name)
    (tmp_path / name).mkdir()
    assert not is_weights_path(tmp_path / name)
    (tmp_path / name).rmdir()
    (tmp_path / name).touch()
    assert is_weights_path(tmp_path / name) is is_path
