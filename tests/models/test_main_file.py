"""The file with a folder's weights, and errors that say what the folder has."""

from pathlib import Path

import pytest

from jaxmix.errors import CheckpointError
from jaxmix.models.main_file import described_variants, folder_text, main_file

from ..messages import full_text

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DIFFUSERS = "diffusion_pytorch_model.safetensors"


def folder(path: Path, *names: str) -> Path:
    """Writes empty files of these names."""
    for name in names:
        (path / name).touch()
    return path


@pytest.mark.parametrize(
    ("names", "variant", "main"),
    [
        ([SINGLE, INDEX], None, SINGLE),
        ([DIFFUSERS, f"{DIFFUSERS}.index.json"], None, f"{DIFFUSERS}.index.json"),
        ([SINGLE, "model.fp16.safetensors"], None, SINGLE),
        ([SINGLE, "model.fp16.safetensors"], "fp16", "model.fp16.safetensors"),
        (["model.fp16.safetensors"], None, "model.fp16.safetensors"),
    ],
)
def test_one_file_is_the_main_one(
    names: list[str], variant: str | None, main: str, tmp_path: Path
) -> None:
    """By each library's precedence; a single variant needs no choice."""
    assert main_file(folder(tmp_path, *names), variant) == tmp_path / main


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ([], "none"),
        ([SINGLE], "the files without a variant"),
        (
            [DIFFUSERS, "model.bf16.safetensors", "model.safetensors.index.fp16.json"],
            "the files without a variant, 'bf16', 'fp16'",
        ),
    ],
)
def test_a_missing_variant_is_refused_with_those_that_exist(
    names: list[str], found: str, tmp_path: Path
) -> None:
    assert described_variants(folder(tmp_path, *names)) == found
    message = f"{tmp_path} has no weights of the variant 'fp32', found {found}. Choose one of them."
    with pytest.raises(CheckpointError, match=full_text(message)):
        main_file(tmp_path, "fp32")


def test_several_variants_need_a_choice(tmp_path: Path) -> None:
    folder(tmp_path, "model.fp16.safetensors", "model.bf16.safetensors")
    message = (
        f"{tmp_path} has several variants of its weights: model.bf16.safetensors, "
        "model.fp16.safetensors. Choose one (variant='…'), or keep only one of them in the folder."
    )
    with pytest.raises(CheckpointError, match=full_text(message)):
        main_file(tmp_path)


def test_a_folder_without_weights_is_described(tmp_path: Path) -> None:
    """The first names in order; a pickle gets other advice."""
    assert folder_text(tmp_path) == "an empty folder"
    assert folder_text(tmp_path / "no") == "no such folder"
    names = [f"{i}.txt" for i in range(9)]
    assert folder_text(folder(tmp_path, *names[:8])) == ", ".join(names[:8])
    assert folder_text(folder(tmp_path, *names)) == f"{', '.join(names[:8])} …"
    with pytest.raises(CheckpointError) as caught:
        main_file(tmp_path)
    assert str(caught.value).endswith("Pass a folder that transformers' save_pretrained wrote.")
    folder(tmp_path, "weights.pth")
    with pytest.raises(CheckpointError) as caught:
        main_file(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path} has neither {SINGLE} nor {INDEX}, nor diffusers' {DIFFUSERS}; found "
        f"{', '.join(names[:8])} …. jaxmix does not read .bin files, since they are pickles. Load "
        "the folder with transformers and save it with save_pretrained, which writes safetensors."
    )
