"""Chooses the adapter file of a folder or repository, where no path names it."""

from collections.abc import Callable, Sequence

from jaxmix.converters.adapters.beside import is_whole_model, weights_beside
from jaxmix.converters.files.torch_files import TORCH_SUFFIXES
from jaxmix.errors import CheckpointError, listing, option

__all__ = ["checked_filename", "chosen_file", "is_copy_of"]

# What diffusers' save_lora_weights writes, which diffusers takes before all others.
_DEFAULTS = ("pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin")


def chosen_file(
    names: Sequence[str], where: str, is_adapter: Callable[[str], bool] = lambda name: True
) -> str | None:
    """The file that holds the adapter of a folder, where no format recognises the folder.

    As in diffusers it is ``pytorch_lora_weights``, or the only safetensors, or the only file that
    torch wrote. A whole model's weights and a trainer's files are not looked at.

    Args:
        names: The names of the folder's files.
        where: The folder, for the message.
        is_adapter: Whether a file holds an adapter, as far as can be told.

    Returns:
        Its name, or None if there is no such file.

    Raises:
        CheckpointError: If it may be any of several.
    """
    for name in _DEFAULTS:
        if name in names:
            return name
    for suffixes in ((".safetensors",), TORCH_SUFFIXES):
        weights = [name for name in weights_beside(names, is_whole_model) if _ends(name, suffixes)]
        found = [name for name in weights if is_adapter(name)]
        if len(found) > 1:
            raise CheckpointError(
                f"{where} holds several files that may be the adapter:{listing(found)}\n"
                f"Say which one to read: {option('filename', found[0])}."
            )
        if found:
            return found[0]
    return None


def is_copy_of(chosen: str) -> Callable[[str], bool]:
    """From the name of a file to whether it is the chosen one, or a copy in another form."""
    stem = chosen.rpartition(".")[0]
    return lambda name: name.rpartition(".")[0] == stem


def checked_filename(filename: str) -> tuple[str | None, str]:
    """A ``filename=`` as the subfolder that is in it, None if there is none, and the name.

    Raises:
        CheckpointError: If it leads out of its folder.
    """
    folder, _, name = filename.replace("\\", "/").rpartition("/")
    if not name or filename.startswith("/") or ".." in folder.split("/") or name in (".", ".."):
        raise CheckpointError(
            f"filename {filename!r} is no file inside its folder, expected one such as "
            "'pytorch_lora_weights.safetensors'. Give its path as the first argument."
        )
    return folder or None, name


def _ends(name: str, suffixes: Sequence[str]) -> bool:
    return name.lower().endswith(tuple(suffixes))
