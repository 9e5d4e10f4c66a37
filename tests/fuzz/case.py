"""An input: files, and the adapters and base among them that are merged."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

__all__ = ["Adapter", "Case", "contents", "write"]


@dataclass(frozen=True)
class Adapter:
    """An adapter of a case.

    Args:
        format: how the oracle reads it: ``"peft"``, ``"kohya"``, ``"diffusers"``, ``"mlx"`` or
            ``"mix"``.
        path: Its folder or file.
        strength: The strength at which it is merged.
        options: Arguments of `jaxmix.load`; the value ``"BASE"`` means the base's path.
    """

    format: str
    path: str
    strength: float = 1.0
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """One input.

    Args:
        files: The bytes of each file, by its path.
        adapters: The adapters to merge, in order of application.
        base: The base's folder or file.
        dequantize: Whether its packed weights are written in bfloat16.
        changes: A description of the changes.
    """

    files: Mapping[str, bytes]
    adapters: tuple[Adapter, ...]
    base: str
    dequantize: bool = False
    changes: tuple[str, ...] = ()

    def changed(self, path: str, data: bytes | None, change: str) -> "Case":
        """Returns the case with another file at a path, or with none."""
        files = {**self.files, path: data} if data is not None else dict(self.files)
        if data is None:
            files.pop(path, None)
        return replace(self, files=files, changes=(*self.changes, f"{path}: {change}"))


Maker = Callable[[], Case]


def write(files: Mapping[str, bytes], folder: Path) -> None:
    """Writes files into a folder."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def contents(folder: Path) -> dict[str, bytes]:
    """Returns a folder's contents: files with their bytes, and empty folders."""
    entries = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_file():
            entries[name] = path.read_bytes()
        elif not any(path.iterdir()):
            entries[name + "/"] = b""
    return entries
