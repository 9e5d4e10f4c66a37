"""What a broken-off merge was: so that `resume` goes on with the same, and with nothing else."""

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

__all__ = ["content", "differences", "journal", "new_file", "read_json", "write_json"]

# More than any record has: names and figures of one shard's tensors.
_MOST = 256 << 20
_READ = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
_BINARY = getattr(os, "O_BINARY", 0)


def journal(checkpoint: Checkpoint, mixed: Mix, layout: Layout) -> dict[str, Any]:
    """All that decides which bytes a merge writes.

    Args:
        checkpoint: what is to be written: with an untied head, dequantized, as options have it.
        mixed: the adapters.
        layout: the table in use.

    Returns:
        Texts and numbers by what people call them.
    """
    headers = hashlib.sha256()
    for shard in checkpoint.shards:
        headers.update(shard.name.encode() + b"\0" + shard.header)
    return {
        "the base's tensors": headers.hexdigest(),
        "the base's files": {
            shard.name: _when(checkpoint.folder / shard.name) for shard in checkpoint.shards
        },
        "the changed side files": dict(sorted(checkpoint.texts.items())),
        "the adapters": [[part.name, content(part)] for part in mixed.parts],
        "their strengths": [repr(float(part.strength)) for part in mixed.parts],
        "the layout": hashlib.sha256(repr(layout).encode()).hexdigest(),
        "the programs": [
            f"jaxmix {version('jaxmix-peft')}, jax {jax.__version__}, {jax.default_backend()}"
        ],
    }


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """What two journals do not have in common, in words."""
    return [key for key in dict.fromkeys((*one, *other)) if one.get(key) != other.get(key)]


def content(part: Adapter) -> str:
    """The hash of an adapter; of one that no file could hold that of its arrays and structure."""
    try:
        return fingerprint(part)
    except AdapterError:
        leaves, structure = jax.tree.flatten(dict(part.updates))
        told = hashlib.sha256(str(structure).encode())
        for leaf in leaves:
            told.update(np.asarray(leaf).tobytes())
        return told.hexdigest()


def _when(path: Path) -> list[int]:
    """A file's size, and when it was written: a base that was exchanged is seen."""
    told = path.stat()
    return [told.st_size, told.st_mtime_ns]


def new_file(path: Path) -> Any:
    """A file that was not there before, open for writing; a link in its place is not followed.

    Raises:
        FileExistsError: if something has that name.
    """
    return os.fdopen(os.open(path, _NEW | _BINARY, 0o666), "wb", buffering=0)


def write_json(path: Path, data: Any) -> None:
    """Writes a file that is there whole, or not at all."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    with new_file(beside) as file:
        file.write(json.dumps(data).encode())
        os.fsync(file.fileno())
    beside.replace(path)


def read_json(path: Path) -> Any:
    """What such a file holds; None if there is none, or something else: a link, a pipe."""
    try:
        with os.fdopen(os.open(path, _READ | _BINARY), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_size > _MOST:
                return None
            return parse_json(file.read())
    except (OSError, ValueError):
        return None
