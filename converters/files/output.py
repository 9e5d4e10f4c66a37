"""Checks the paths of outputs, and writes folders next to their final path before moving them."""

import errno
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from jaxmix.errors import CheckpointError, listing, option
from jaxmix.untrusted.files import local_path, output_path

__all__ = [
    "HINTS",
    "check_apart",
    "checked_file",
    "checked_output",
    "is_checkpoint_file",
    "new_folder",
]

# Files that mark a checkpoint, which --force may replace. Other folders may be a user's own.
_MARKS = ("config.json", "model_index.json", "model.safetensors", "model.safetensors.index.json")
# The files that transformers, diffusers, tokenizers, processors and hubs write to such a folder.
_CHECKPOINT_FILES = re.compile(
    r"(diffusion_pytorch_)?model(\.\w+)?(-\d{5}-of-\d{5})?\.safetensors(\.index(\.\w+)?\.json)?"
    r"|(config|model_index|scheduler_config|generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab"
    r"|preprocessor_config|processor_config|video_preprocessor_config|chat_template)\.json"
    r"|tokenizer\.model|spiece\.model|sentencepiece\.bpe\.model|vocab\.txt|merges\.txt"
    r"|chat_template\.jinja|README\.md|LICENSE(\.\w+)?|NOTICE|USE_POLICY\.md|\.gitattributes"
)
# Files that file managers create.
_LITTER = (".DS_Store", "Thumbs.db", "desktop.ini")
HINTS = {
    errno.ENOSPC: "Free some space, or choose another disk.",
    errno.EDQUOT: "Free some space, or choose another disk.",
    errno.EFBIG: "Choose a disk that supports files of this size.",
    errno.EACCES: "Choose a folder to which you can write.",
    errno.EPERM: "Choose a folder to which you can write.",
    errno.EROFS: "Choose a folder to which you can write.",
}


def checked_output(
    out: str | os.PathLike[str],
    inputs: Iterable[str | os.PathLike[str]],
    *,
    force: bool = False,
    size: int = 0,
    marks: Sequence[str] = _MARKS,
    replaces: Callable[[str], bool] | None = None,
) -> Path:
    """Checks the path of a new folder, to the extent possible before writing.

    Args:
        out: The path of the folder.
        inputs: Folders that are read, which the output must not overlap.
        force: Whether an existing checkpoint may be replaced.
        size: The number of bytes to write.
        marks: Files of which one must be in a folder that is replaced.
        replaces: Whether a file, given its path in the folder, may be replaced; by default, the
            files of a checkpoint. A folder with any other file is not replaced.

    Returns:
        The path with links resolved.

    Raises:
        CheckpointError: If the path is taken or overlaps an input, or the disk has too little
            space.
    """
    path = _resolve_apart(out, inputs, "folder")
    if path.is_dir():
        if not force:
            raise CheckpointError(
                f"the output {out} exists. Choose another folder, or use {option('force')} to "
                "replace it once the new one is complete."
            )
        if any(path.iterdir()) and not any((path / mark).exists() for mark in marks):
            raise CheckpointError(
                f"the output {out} exists and is not a checkpoint: it has none of "
                f"{', '.join(marks)}. Choose another folder, or empty this one."
            )
        check_replaceable(path, replaces or is_checkpoint_file)
        if Path.cwd().is_relative_to(path):
            raise CheckpointError(
                f"the output {out} contains the working directory, which would be deleted with the "
                "folder that is replaced. Change to another directory, or choose another folder."
            )
    elif path.exists():
        raise CheckpointError(f"the output {out} is a file. Choose the path of a folder.")
    _check_space(out, path, size)
    return path


def checked_file(
    out: str | os.PathLike[str],
    inputs: Iterable[str | os.PathLike[str]],
    *,
    force: bool = False,
    size: int = 0,
) -> Path:
    """Checks the path of a new safetensors file, to the extent possible before writing.

    Args:
        out: The path of the file.
        inputs: Files that are read.
        force: Whether an existing file may be replaced.
        size: The number of bytes to write.

    Returns:
        The path with links resolved.

    Raises:
        CheckpointError: If the path is taken or is an input, or the disk has too little space.
    """
    path = _resolve_apart(out, inputs, "file")
    if path.is_dir():
        raise CheckpointError(
            f"the output {out} is a folder, and the base is a file. Choose the path of a file."
        )
    if path.suffix != ".safetensors":
        raise CheckpointError(
            f"the output {out} must be a safetensors file, as the base is. Choose a name that ends "
            "in .safetensors."
        )
    if path.exists() and not force:
        raise CheckpointError(
            f"the output {out} exists. Choose another name, or use {option('force')} to replace "
            "it once the new one is complete."
        )
    _check_space(out, path, size)
    return path


def is_checkpoint_file(name: str) -> bool:
    """Whether a file, given its path in the folder, is a usual part of checkpoints.

    Args:
        name: The path, with slashes.

    Returns:
        True for a usual part, not in a sub-folder.

    Example:
        >>> is_checkpoint_file("model-00001-of-00002.safetensors"), is_checkpoint_file("thesis.tex")
        (True, False)
    """
    return _CHECKPOINT_FILES.fullmatch(name) is not None


def check_replaceable(path: Path, replaces: Callable[[str], bool]) -> None:
    """Refuses to replace a folder that holds other files.

    Args:
        path: The folder.
        replaces: Whether a file, given its path in the folder, may be replaced.

    Raises:
        CheckpointError: If there are other files, which are listed, or unreadable folders.
    """
    others = [
        name
        for name in _contents(path)
        if not replaces(name) and name.rsplit("/", 1)[-1] not in _LITTER
    ]
    if others:
        raise CheckpointError(
            f"the output {path} can't be replaced, since it also holds other files:"
            f"{listing(others)}\nMove these files, or choose another folder."
        )


def _contents(folder: Path) -> Iterator[str]:
    """Yields the paths of a folder's files, links and empty folders; the latter end in a slash."""

    def refuse(error: OSError) -> None:
        raise CheckpointError(
            f"the output {folder} can't be replaced, since its files can't be listed: {error}. "
            "Choose another folder."
        ) from error

    for above, folders, files in os.walk(folder, onerror=refuse):
        inner = Path(above).relative_to(folder)
        links = [name for name in folders if (Path(above) / name).is_symlink()]
        yield from sorted((inner / name).as_posix() for name in (*files, *links))
        if not files and not folders and above != str(folder):
            yield f"{inner.as_posix()}/"


def _resolve_apart(
    out: str | os.PathLike[str], inputs: Iterable[str | os.PathLike[str]], kind: str
) -> Path:
    """Returns the output's path with links resolved, if it does not overlap an input."""
    check_apart(out, inputs, "the output", f" Choose a separate {kind}.")
    return output_path(out).resolve()


def check_apart(
    out: str | os.PathLike[str],
    inputs: Iterable[str | os.PathLike[str]],
    subject: str,
    advice: str = " Choose another name for the output.",
) -> None:
    """Refuses an output that is an input, contains one, or is in one.

    Args:
        out: The path of the output.
        inputs: Files and folders that are read.
        subject: A description of the output, which precedes its path in the message.
        advice: The end of the message.

    Raises:
        CheckpointError: If output and input overlap.
    """
    path = output_path(out).resolve()
    for name in inputs:
        source = local_path(name).resolve()
        if path == source or path.is_relative_to(source) or source.is_relative_to(path):
            relation = "is" if path == source else "is in"
            if path != source and source.is_relative_to(path):
                relation = "contains"
            raise CheckpointError(f"{subject} {out} {relation} the input {name}.{advice}")


def _check_space(out: str | os.PathLike[str], path: Path, size: int) -> None:
    """Checks that the disk has enough space."""
    parent = next(folder for folder in path.parents if folder.exists())
    if parent.is_dir() and (free := shutil.disk_usage(parent).free) < size:
        raise CheckpointError(
            f"the output {out} needs {size:,} bytes, and {parent} has {free:,} bytes free. "
            f"{HINTS[errno.ENOSPC]}"
        )


@contextmanager
def new_folder(
    path: Path, *, force: bool = False, replaces: Callable[[str], bool] | None = None
) -> Iterator[Path]:
    """Yields a new folder, which is renamed to its final path at the end, or deleted on an error.

    Args:
        path: The final path, as `checked_output` returns it.
        force: Whether to replace an existing folder. It is moved away at the end, and deleted once
            the new folder is in place.
        replaces: The files that may be replaced, as in `checked_output`.

    Yields:
        A new folder next to the final path.

    Raises:
        CheckpointError: If writing fails, also in the body.
    """
    temporary = path.with_name(f"{path.name}.partial-{secrets.token_hex(4)}")
    missing = [folder for folder in temporary.parents if not os.path.lexists(folder)]
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if force and path.exists():
            check_replaceable(path, replaces or is_checkpoint_file)
        _move_into_place(temporary, path, force)
    except OSError as error:
        hint = HINTS.get(error.errno or 0, "")
        raise CheckpointError(
            f"the output {path} could not be written: {error}. What was written is deleted, and "
            f"nothing else has changed. {hint}".rstrip()
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        for folder in missing:  # innermost first; a folder that is not empty stays
            with suppress(OSError):
                folder.rmdir()


def _move_into_place(new: Path, path: Path, force: bool) -> None:
    """Renames a folder to its final path, replacing an existing folder only after that."""
    if not (force and path.exists()):
        new.rename(path)
        return
    aside = path.with_name(f"{path.name}.replaced-{secrets.token_hex(4)}")
    path.rename(aside)
    try:
        new.rename(path)
    except BaseException:
        aside.rename(path)
        raise
    shutil.rmtree(aside, ignore_errors=True)
