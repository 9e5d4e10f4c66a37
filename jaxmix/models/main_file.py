"""The file with a folder's weights, or the index of their shards; errors that say what is there."""

from pathlib import Path

from jaxmix.errors import CheckpointError, option
from jaxmix.weight_files import WEIGHTS, variants, weights_files

__all__ = ["described_variants", "folder_text", "main_file"]


def main_file(folder: Path, variant: str | None = None) -> Path:
    """Returns the single file with a folder's weights, or the index of their shards.

    Args:
        folder: The folder.
        variant: As in `tensor_files`.

    Raises:
        CheckpointError: If there is none, or several variants and none is chosen.
    """
    found = weights_files(folder, variant)
    if not found and variant is not None:
        raise CheckpointError(
            f"{folder} has no weights of the variant {variant!r}, found "
            f"{described_variants(folder)}. Choose one of them."
        )
    if not found:
        raise CheckpointError(_no_weights(folder))
    main, *others = found
    if others:
        raise CheckpointError(
            f"{folder} has several variants of its weights: "
            f"{', '.join(file.name for file in found)}. Choose one "
            f"({option('variant', '…')}), or keep only one of them in the folder."
        )
    return main


def described_variants(folder: Path) -> str:
    """Returns the variants of a folder's weights, for messages.

    Args:
        folder: The folder.
    """
    plain = ["the files without a variant"] * any((folder / name).exists() for name in WEIGHTS)
    return ", ".join([*plain, *map(repr, variants(folder))]) or "none"


def _no_weights(folder: Path) -> str:
    """Describes a folder without weights, and what to do."""
    text = (
        f"{folder} has neither {WEIGHTS[0]} nor {WEIGHTS[1]}, nor diffusers' {WEIGHTS[3]}; found "
        f"{folder_text(folder)}."
    )
    if folder.is_dir() and any(file.suffix in (".bin", ".pt", ".pth") for file in folder.iterdir()):
        return (
            f"{text} jaxmix does not read .bin files, since they are pickles. Load the folder with "
            "transformers and save it with save_pretrained, which writes safetensors."
        )
    return f"{text} Pass a folder that transformers' save_pretrained wrote."


def folder_text(folder: Path) -> str:
    """Returns the contents of a folder, for messages.

    Args:
        folder: The folder, which need not exist.
    """
    if not folder.is_dir():
        return "no such folder"
    names = sorted(entry.name for entry in folder.iterdir())
    return ", ".join(names[:8]) + (" …" if len(names) > 8 else "") if names else "an empty folder"
