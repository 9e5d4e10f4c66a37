"""Suggests corrections for mistyped paths, from the names in the last folder that exists."""

import re
from difflib import get_close_matches
from pathlib import Path

from jaxmix.errors import CheckpointError
from jaxmix.untrusted.files import shown

__all__ = ["MistypedPathError", "refuse_mistyped", "suggest_paths"]

# The most entries of a folder that are searched.
_ENTRIES = 10_000
_DIGITS = re.compile(r"\d+")


class MistypedPathError(CheckpointError):
    """A path that does not exist, while a similar one does.

    Args:
        message: The message.
        path: The path as the user wrote it.
        near: The existing path that is most similar.
    """

    def __init__(self, message: str, path: str, near: str) -> None:
        super().__init__(message)
        self.path, self.near = path, near


def refuse_mistyped(text: str, on_hub: str = "") -> None:
    """Refuses a path that does not exist if a similar one does.

    Names that differ in numbers only, such as ``owner/model-1b`` and ``owner/model-3b``, are of
    different models. They are not taken for misspellings, so the hub is asked.

    Args:
        text: The path as the user wrote it, which does not exist.
        on_hub: How to make clear that it is the id of a repository on the hub; "" if it can't be.

    Raises:
        MistypedPathError: If there is a similar path.
    """
    similar = [path for _, path in _close(text) if path.exists()]
    if on_hub:
        typed = _letters(Path(text).expanduser())
        similar = [path for path in similar if _letters(path) != typed]
    if not similar:
        return
    hint = f" If it is on the hub, {on_hub}." if on_hub else ""
    raise MistypedPathError(
        f"{shown(text)} does not exist. Did you mean {' or '.join(map(str, similar))}?{hint}",
        text,
        str(similar[0]),
    )


def suggest_paths(text: str) -> str:
    """Suggests existing paths similar to one that does not exist.

    Args:
        text: The path as the user wrote it.

    Returns:
        A sentence with a leading space, or "" if no similar path exists.

    Example:
        >>> suggest_paths("no/such/folder/here")
        ''
    """
    # Names under which the rest of the path exists come first.
    if close := sorted(_close(text), key=lambda pair: not pair[1].exists()):
        paths = [str(path if path.exists() else entry) for entry, path in close]
        return f" Did you mean {' or '.join(paths)}?"
    if (last := _last_folder(text)) is None:
        return ""
    folder, name = last
    is_shown = folder.name and not Path(text).expanduser().is_absolute()
    return f" The folder {folder} has no {name}." if is_shown else ""


def _close(text: str) -> list[tuple[Path, Path]]:
    """Returns entries with names similar to the first that is missing, and the path with each."""
    if (last := _last_folder(text)) is None:
        return []
    folder, missing = last
    try:
        names = [entry.name for _, entry in zip(range(_ENTRIES), folder.iterdir(), strict=False)]
    except OSError:
        return []
    below = Path(text).expanduser().relative_to(folder / missing)
    close = [folder / name for name in get_close_matches(missing, names, n=3, cutoff=0.7)]
    # A link to nothing may be the very path.
    return [(entry, entry / below) for entry in close if entry.exists()]


def _last_folder(text: str) -> tuple[Path, str] | None:
    """Returns the last folder of a path that exists, and the name that it lacks."""
    try:
        path = Path(text).expanduser()
        parents = [path, *path.parents]
        last = next(i for i, folder in enumerate(parents) if i and folder.is_dir())
    except (OSError, RuntimeError, ValueError, StopIteration):
        return None
    return parents[last], parents[last - 1].name


def _letters(path: Path) -> str:
    """Returns a path with a sign for each number."""
    return _DIGITS.sub("#", path.as_posix())
