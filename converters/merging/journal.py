"""The description of a merge, by which `resume` recognizes an interrupted run of the same merge."""

import hashlib
import json
import os
import secrets
import stat
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxmix.adapter import Adapter
from jaxmix.converters.adapters.mixfile import fingerprint
from jaxmix.converters.checkpoints.huggingface import Checkpoint
from jaxmix.errors import AdapterError
from jaxmix.mixing import Mix
from jaxmix.placement.layout import Layout
from jaxmix.untrusted.files import parse_json

__all__ = ["adapter_hash", "describe_merge", "differences", "new_file", "read_json", "write_json"]

# Larger than any record, which lists the tensors of one shard.
_MAX_BYTES = 256 << 20
_READ_FLAGS = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
_CREATE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
_BINARY = getattr(os, "O_BINARY", 0)


def describe_merge(
    checkpoint: Checkpoint, mixed: Mix, layout: Layout | tuple[Layout, ...]
) -> dict[str, Any]:
    """Describes everything that determines the bytes of a merge's output.

    Args:
        checkpoint: The checkpoint to write, after untying, dequantizing and so on.
        mixed: The adapters.
        layout: The layout in use; of a pipeline, that of each component.

    Returns:
        Data for JSON; error messages quote its keys.
    """
    headers = hashlib.sha256()
    for shard in checkpoint.shards:
        headers.update(shard.name.encode() + b"\0" + shard.header)
    return {
        "the base's tensors": headers.hexdigest(),
        "the base's files": {
            shard.name: _size_and_time(checkpoint.folder / shard.name)
            for shard in checkpoint.shards
        },
        "the changed side files": dict(sorted(checkpoint.texts.items())),
        "the adapters": [[part.name, adapter_hash(part)] for part in mixed.parts],
        "their strengths": [repr(float(part.strength)) for part in mixed.parts],
        "the layout": hashlib.sha256(repr(layout).encode()).hexdigest(),
        "the programs": [
            f"jaxmix {version('jaxmix-peft')}, jax {jax.__version__}, {jax.default_backend()}"
        ],
    }


def differences(left: Mapping[str, Any], right: Mapping[str, Any]) -> list[str]:
    """Returns the keys at which two descriptions differ."""
    return [key for key in dict.fromkeys((*left, *right)) if left.get(key) != right.get(key)]


def adapter_hash(part: Adapter) -> str:
    """Returns the hash of an adapter's file, or of its arrays if no file format can hold it."""
    try:
        return fingerprint(part)
    except AdapterError:
        leaves, structure = jax.tree.flatten(dict(part.updates))
        digest = hashlib.sha256(str(structure).encode())
        for leaf in leaves:
            digest.update(np.asarray(leaf).tobytes())
        return digest.hexdigest()


def _size_and_time(path: Path) -> list[int]:
    """Returns a file's size and the time of its last write, by which another base is detected."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def new_file(path: Path) -> Any:
    """Creates a file and opens it for writing; does not follow a link in its place.

    Raises:
        FileExistsError: If the path exists.
    """
    return os.fdopen(os.open(path, _CREATE_FLAGS | _BINARY, 0o666), "wb", buffering=0)


def write_json(path: Path, data: Any) -> None:
    """Writes a file of JSON atomically."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    with new_file(temporary) as file:
        file.write(json.dumps(data).encode())
        os.fsync(file.fileno())
    temporary.replace(path)


def read_json(path: Path) -> Any:
    """Reads a file of JSON; None if it is missing, invalid, a link or a pipe."""
    try:
        with os.fdopen(os.open(path, _READ_FLAGS | _BINARY), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_BYTES:
                return None
            return parse_json(file.read())
    except (OSError, ValueError):
        return None
