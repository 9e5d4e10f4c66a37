"""What a mistyped path may have meant: the names that lie where it goes astray."""

from difflib import get_close_matches
from pathlib import Path

__all__ = ["near_paths"]

# A folder of more entries is not searched.
_ENTRIES = 10_000


def near_paths(text: str) -> str:
    """What to say of a path that does not exist, if something like it does.

    Args:
        text: the path as the user wrote it.

    Returns:
        A sentence that begins with a space, or "" if nothing like it is there.

    Example:
        >>> near_paths("no/such/folder/here")
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
    # Those in which the rest of the path exists too come first.
    close.sort(key=lambda one: not (folder / one / rest).exists())
    found = [folder / one / rest if (folder / one / rest).exists() else folder / one
             for one in close]  # fmt: skip
    if found:
        return f" Did you mean {' or '.join(map(str, found))}?"
    is_shown = folder.name and not path.is_absolute()
    return f" The folder {folder} has no {name}." if is_shown else ""
