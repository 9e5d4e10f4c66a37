"""Goldens on disk: a zip of what PEFT saved and computed, opened without torch."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load, save

__all__ = ["FOLDER", "Archive", "pack"]

FOLDER = Path(__file__).parent
_DATE = (2020, 1, 1, 0, 0, 0)


class Archive:
    """One zip: JSON, tensors, and adapter folders that `unpack` lays out on disk."""

    def __init__(self, name: str) -> None:
        """Open ``<name>.zip`` beside this file."""
        self.zip = zipfile.ZipFile(FOLDER / f"{name}.zip")

    def json(self, name: str) -> Any:
        """A JSON member."""
        return json.loads(self.zip.read(name))

    def tensors(self, name: str) -> dict[str, np.ndarray]:
        """A safetensors member."""
        return load(self.zip.read(name))

    def unpack(self, folder: Path) -> Path:
        """Write all adapters below `folder`, as PEFT had saved them."""
        self.zip.extractall(folder, [n for n in self.zip.namelist() if n.startswith("adapters/")])
        return folder / "adapters"


def pack(
    name: str, data: dict[str, Any], tensors: dict[str, dict[str, np.ndarray]], adapters: Path
) -> int:
    """Write a golden: JSON members, safetensors members, all of a folder of adapters; its size."""
    members = {key: json.dumps(value).encode() for key, value in data.items()}
    members |= {
        key: save({k: np.ascontiguousarray(v) for k, v in value.items()})
        for key, value in tensors.items()
    }
    for path in sorted(adapters.rglob("*")):
        if path.is_file():
            members[f"adapters/{path.relative_to(adapters).as_posix()}"] = path.read_bytes()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as out:
        for key, value in members.items():
            out.writestr(zipfile.ZipInfo(key, _DATE), value, zipfile.ZIP_DEFLATED)
    (FOLDER / f"{name}.zip").write_bytes(buffer.getvalue())
    return buffer.tell()
