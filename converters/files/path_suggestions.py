"""Suggests corrections for mistyped paths, from the names in the last folder that exists."""

from difflib import get_close_matches
from pathlib import Path

__all__ = ["suggest_paths"]

# The most entries of a folder that are searched.
_ENTRIES = 10_000


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
    try:
        path = Path(text).expanduser()
        parents = [path, *path.parents]
        last = next(i for i, folder in enumerate(parents) if i and folder.is_dir())
        folder, name = parents[last], parents[last - 1].name
        names = [entry.name for _, entry in zip(range(_ENTRIES), folder.iterdir(), strict=False)]
    except (OSError, RuntimeError, ValueError, StopIteration):
        return ""
    close = get_close_matches(name, names, n=3, cutoff=0.7)
    rest = path.relative_to(parents[last - 1])
    # Names under which the rest of the path exists come first.
    close.sort(key=lambda name: not (folder / name / rest).exists())
    paths = [folder / name / rest if (folder / name / rest).exists() else folder / name
             for name in close]  # fmt: skip
    if paths:
        return f" Did you mean {' or '.join(map(str, paths))}?"
    is_shown = folder.name and not path.is_absolute()
    return f" The folder {folder} has no {name}." if is_shown else ""
