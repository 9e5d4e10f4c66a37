"""Chooses the adapter's file in a folder or repository where no path names it."""

from collections.abc import Callable, Sequence

from jaxmix.converters.adapters.common.extra_weights import extra_weights, is_whole_model
from jaxmix.converters.files.torch_files import TORCH_SUFFIXES
from jaxmix.errors import CheckpointError, listing, option

__all__ = ["choose_file", "is_copy_of", "split_filename"]

# The files of diffusers' save_lora_weights, which diffusers prefers to all others.
_DEFAULTS = ("pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin")


def choose_file(
    names: Sequence[str], where: str, is_adapter: Callable[[str], bool] = lambda name: True
) -> str | None:
    """Chooses the file with the adapter in a folder that no format recognizes.

    As in diffusers, it is ``pytorch_lora_weights``, or the only safetensors file, or the only file
    of ``torch.save``. A whole model's weights and a trainer's files are skipped.

    Args:
        names: The names of the folder's files.
        where: The folder, for the message.
        is_adapter: Whether a file may contain an adapter.

    Returns:
        Its name, or None if there is no such file.

    Raises:
        CheckpointError: If several files may be the adapter.
    """
    for name in _DEFAULTS:
        if name in names:
            return name
    for suffixes in ((".safetensors",), TORCH_SUFFIXES):
        weights = extra_weights(names, is_whole_model)
        candidates = [
            name for name in weights if name.lower().endswith(suffixes) and is_adapter(name)
        ]
        if len(candidates) > 1:
            raise CheckpointError(
                f"{where} has several files that may be the adapter:{listing(candidates)}\n"
                f"Say which one to read: {option('filename', candidates[0])}."
            )
        if candidates:
            return candidates[0]
    return None


def is_copy_of(chosen: str) -> Callable[[str], bool]:
    """Returns a test of a file's name: the chosen file, or a copy with another suffix."""
    stem = chosen.rpartition(".")[0]
    return lambda name: name.rpartition(".")[0] == stem


def split_filename(filename: str) -> tuple[str | None, str]:
    """Splits a ``filename=`` into its subfolder, None if absent, and the file's name.

    Raises:
        CheckpointError: If it leads out of its folder.
    """
    folder, _, name = filename.replace("\\", "/").rpartition("/")
    if not name or filename.startswith("/") or ".." in folder.split("/") or name in (".", ".."):
        raise CheckpointError(
            f"filename {filename!r} is not a file inside its folder, expected one such as "
            "'pytorch_lora_weights.safetensors'. Pass its path as the first argument."
        )
    return folder or None, name
