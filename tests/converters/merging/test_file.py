"""A single safetensors file as base and as output."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jaxmix
from jaxmix.converters.merging import merge_checkpoint, verify_merge
from jaxmix.errors import CheckpointError, LayoutError
from jaxmix.families import IA3

from ...messages import UNTIE, full_text, tied_embedding, ties
from ..bases import Adapters, contents, header, mixed, save_base


def test_single_file(base: Path, adapters: Adapters, tmp_path: Path) -> None:
    """The output has the bytes of a folder with one shard; no other files are written."""
    file, out = base / "model.safetensors", tmp_path / "sub" / "merged.safetensors"
    merged = merge_checkpoint(file, mixed(adapters), out, verify=True)
    merge_checkpoint(base, mixed(adapters), tmp_path / "folder")
    assert out.read_bytes() == (tmp_path / "folder" / "model.safetensors").read_bytes()
    assert (merged.out, merged.shards, merged.left_out) == (out, ("model.safetensors",), ())
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    assert merged.verified is not None and verify_merge(file, mixed(adapters), out).ok
    message = full_text(
        f"the output {out} exists. Choose another name, or use force=True to replace it once the "
        "new one is complete."
    )
    with pytest.raises(CheckpointError, match=message):
        merge_checkpoint(file, [], out)
    merge_checkpoint(file, [], out, force=True)
    assert out.read_bytes() == file.read_bytes()
    assert not verify_merge(file, mixed(adapters), out).ok


@pytest.mark.parametrize(
    ("out", "text"),
    [
        (
            "base/model.safetensors",
            "is the input {}/base/model.safetensors. Choose a separate file.",
        ),
        ("folder", "is a folder, and the base is a file. Choose the path of a file."),
        (
            "x.bin",
            "must be a safetensors file, as the base is. Choose a name that ends in .safetensors.",
        ),
        (
            "link.safetensors",
            "is the input {}/base/model.safetensors. Choose a separate file.",
        ),
    ],
)
def test_impossible_outputs(
    out: str, text: str, base: Path, adapters: Adapters, tmp_path: Path
) -> None:
    """Each is an error, and nothing changes."""
    (tmp_path / "link.safetensors").symlink_to(base / "model.safetensors")
    (tmp_path / "folder").mkdir()
    before = contents(tmp_path)
    for force in (False, True):
        message = f"the output {tmp_path / out} {text.format(tmp_path)}"
        with pytest.raises(CheckpointError, match=full_text(message)):
            merge_checkpoint(
                base / "model.safetensors", mixed(adapters), tmp_path / out, force=force
            )
    assert contents(tmp_path) == before


def test_output_next_to_the_base(base: Path, adapters: Adapters) -> None:
    """Another file in the base's own folder is a valid output."""
    file, out = base / "model.safetensors", base / "merged.safetensors"
    merge_checkpoint(file, mixed(adapters), out, verify=True)
    assert header(out) == header(file)


def test_ties(adapters: Adapters, tmp_path: Path) -> None:
    """The config next to it states whether it is tied; an untied head is written to the file."""
    base = save_base(tmp_path / "base", tied=True)
    file, embedding = base / "model.safetensors", jaxmix.load(adapters["embedding"])
    message = full_text(ties(tied_embedding(advice=False), tree=str(file)) + UNTIE)
    with pytest.raises(LayoutError, match=message):
        merge_checkpoint(file, embedding, tmp_path / "out.safetensors")
    merged = merge_checkpoint(file, embedding, tmp_path / "out.safetensors", untie=True)
    assert merged.untied == "lm_head.weight"
    assert "lm_head.weight" in load_file(tmp_path / "out.safetensors")


def test_damaged_files(adapters: Adapters, tmp_path: Path) -> None:
    """Truncated and empty files are refused."""
    file = tmp_path / "base.safetensors"
    save_file({"x.weight": np.ones((2, 3))}, file)
    os.truncate(file, file.stat().st_size - 1)
    lora: Any = jaxmix.load(adapters["lora"])
    message = full_text(
        f"{file} is not a complete safetensors file: it ends after 119 of 120 bytes. Was the "
        "download interrupted? Download or save it again."
    )
    with pytest.raises(CheckpointError, match=message):
        merge_checkpoint(file, lora, tmp_path / "out.safetensors")
    message = full_text(
        f"{tmp_path}/nothing.safetensors does not exist, expected a Hugging Face folder with "
        "safetensors, or the id of a repository on the hub, 'owner/name'."
    )
    with pytest.raises(CheckpointError, match=message):
        merge_checkpoint(tmp_path / "nothing.safetensors", lora, tmp_path / "out.safetensors")
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("shape", [(6,), (1, 6), (2, 3), (6, 1)])
def test_bias_with_several_axes(shape: tuple[int, ...], tmp_path: Path) -> None:
    """All of its numbers change, in any axis order."""
    base = {
        "q.weight": np.ones((6, 4), np.float32),
        "q.bias": np.arange(6, dtype=np.float32).reshape(shape),
    }
    save_file(base, tmp_path / "base.safetensors")
    adapter = jaxmix.Adapter({"q": IA3(np.arange(2, 8, dtype=np.float32))})
    merge_checkpoint(tmp_path / "base.safetensors", adapter, tmp_path / "out.safetensors")
    bias = load_file(tmp_path / "out.safetensors")["q.bias"]
    expected = np.arange(6) * np.arange(2, 8)
    assert bias.shape == shape and bias.reshape(-1).tolist() == expected.tolist()
