"""Golden files: zip archives of PEFT's adapters and outputs, readable without torch."""

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
    """A zip archive of JSON members, tensors and adapter folders, which `unpack` writes to disk."""

    def __init__(self, name: str) -> None:
        """Opens ``<name>.zip`` next to this file."""
        self.zip = zipfile.ZipFile(FOLDER / f"{name}.zip")

    def json(self, name: str) -> Any:
        """Returns a JSON member."""
        return json.loads(self.zip.read(name))

    def tensors(self, name: str) -> dict[str, np.ndarray]:
        """Returns the tensors of a safetensors member."""
        return load(self.zip.read(name))

    def unpack(self, folder: Path) -> Path:
        """Writes all adapters below `folder`, as PEFT saved them."""
        self.zip.extractall(folder, [n for n in self.zip.namelist() if n.startswith("adapters/")])
        return folder / "adapters"


def pack(
    name: str, data: dict[str, Any], tensors: dict[str, dict[str, np.ndarray]], adapters: Path
) -> int:
    """Writes JSON and safetensors members and a folder of adapters; returns the size in bytes."""
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
