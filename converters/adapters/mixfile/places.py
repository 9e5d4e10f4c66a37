"""Where the parts of a recipe may lie: below its folder, and nowhere else on this machine."""

from pathlib import Path, PurePosixPath, PureWindowsPath

from jaxmix.converters.adapters.mixfile.coding import shown
from jaxmix.errors import CheckpointError

__all__ = ["check_no_way_out", "inside", "on_hub"]


def on_hub(folder: Path) -> tuple[str, str, Path] | None:
    """Where on the hub a folder comes from, if it lies in the hub's local cache.

    Args:
        folder: the folder.

    Returns:
        Repository, commit, and the path in it; None of another folder.
    """
    parts = folder.resolve().parts
    for i, part in enumerate(parts[1:-1], 1):
        if part == "snapshots" and parts[i - 1].startswith("models--"):
            return "/".join(parts[i - 1].split("--")[1:]), parts[i + 1], Path(*parts[i + 2 :])
    return None


def inside(folder: Path, source: str, where: str) -> Path:
    """The path that a source would be; it must not be absolute, nor climb.

    Args:
        folder: the recipe's.
        source: what the recipe says.
        where: the part, for messages.

    Returns:
        The path.

    Raises:
        CheckpointError: if it leads elsewhere.
    """
    windows = PureWindowsPath(source)
    is_absolute = PurePosixPath(source).is_absolute() or bool(windows.drive or windows.root)
    if is_absolute or source.startswith("~") or ".." in windows.parts or "\\" in source:
        raise CheckpointError(
            f"{where}: the source is {shown(source)}, expected a path below the folder of the "
            "recipe, with '/', or a hub id. Put the recipe into a folder above its adapters, or "
            "mix with jaxmix.mix and jaxmix.save."
        )
    return folder / source


def check_no_way_out(place: Path, folder: Path, subfolder: str | None, where: str) -> None:
    """Refuses a link that leads out of the recipe's folder, or of the hub's cache for its files.

    Args:
        place: the part's path.
        folder: the recipe's.
        subfolder: where in the place the adapter lies.
        where: the part, for messages.

    Raises:
        CheckpointError: if it does.
    """
    end, home = (place / subfolder if subfolder else place).resolve(), folder.resolve()
    is_cached = on_hub(folder) and end.parent.name == "blobs" and end.parents[1] in home.parents
    if not (end.is_relative_to(home) or is_cached):
        raise CheckpointError(
            f"{where}: it is a link out of the recipe's folder. Expected what lies below it; copy "
            "the adapter there."
        )
