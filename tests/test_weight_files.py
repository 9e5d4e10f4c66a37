"""The files of weights in a folder, with transformers' and diffusers' order of precedence."""

from pathlib import Path

import pytest

from jaxmix.weight_files import WEIGHTS, is_index, weights_files

SHARD = "model-00001-of-00002.safetensors"
DIFFUSERS = "diffusion_pytorch_model"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([], []),
        ([SHARD, "adapter_model.safetensors", "model.bin"], []),
        (["model.safetensors"], ["model.safetensors"]),
        ([SHARD, "model.safetensors.index.json"], ["model.safetensors.index.json"]),
        # transformers prefers the single file, diffusers the index.
        (["model.safetensors", "model.safetensors.index.json"], ["model.safetensors"]),
        (
            [f"{DIFFUSERS}.safetensors", f"{DIFFUSERS}.safetensors.index.json"],
            [f"{DIFFUSERS}.safetensors.index.json"],
        ),
        # Weights without a variant take precedence.
        (["model.fp16.safetensors", "model.safetensors"], ["model.safetensors"]),
        (["model.fp16.safetensors"], ["model.fp16.safetensors"]),
        (
            ["model.fp16.safetensors", "model.bf16.safetensors"],
            ["model.bf16.safetensors", "model.fp16.safetensors"],
        ),
        # Of a variant's file and index, the index counts, under diffusers' old name too.
        (
            ["model.fp16.safetensors", "model.safetensors.index.fp16.json"],
            ["model.safetensors.index.fp16.json"],
        ),
        (
            [f"{DIFFUSERS}.fp16.safetensors", f"{DIFFUSERS}.fp16.safetensors.index.json"],
            [f"{DIFFUSERS}.fp16.safetensors.index.json"],
        ),
        # Shards of a variant are not a single file.
        (["model.fp16-00001-of-00002.safetensors"], []),
        (["model.00001-of-00002.safetensors"], ["model.00001-of-00002.safetensors"]),
    ],
)
def test_weights_are_chosen_by_precedence(
    names: list[str], expected: list[str], tmp_path: Path
) -> None:
    for name in names:
        (tmp_path / name).touch()
    assert [path.name for path in weights_files(tmp_path)] == expected


def test_missing_folder_has_no_weights(tmp_path: Path) -> None:
    """Neither has a file, which is not a folder."""
    (tmp_path / "file").touch()
    assert weights_files(tmp_path / "missing") == weights_files(tmp_path / "file") == ()


def test_indices_are_recognized() -> None:
    """Exactly the names that end in .json are indices."""
    assert [is_index(Path(name)) for name in WEIGHTS] == [False, True, True, False]
