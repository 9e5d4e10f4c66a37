"""Base checkpoints: a Hugging Face folder as bytes that can be written again, tensor by tensor.

A safetensors file is eight bytes (the header's length), a header of JSON, and the tensors' bytes
one after the other. A file with the same tensors of the same shapes and dtypes has the same header,
so headers are copied as they are, and of a tensor that nobody touches only the bytes are read.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxmix.converters.files.hub import base_folder
from jaxmix.converters.files.mistaken import is_model, no_base
from jaxmix.converters.files.near import near_paths
from jaxmix.errors import CheckpointError
from jaxmix.untrusted.files import parse_json

__all__ = [
    "CONFIG_FILE",
    "FLOATS",
    "INDEX_FILE",
    "Checkpoint",
    "Shard",
    "Stored",
    "read_checkpoint",
    "read_shard",
]

CONFIG_FILE = "config.json"
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

# safetensors' names of the dtypes that a weight may have to be changed.
FLOATS: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
}


@dataclass(frozen=True)
class Stored:
    """A tensor in a safetensors file.

    Args:
        name: its PyTorch name.
        dtype: safetensors' name of its dtype, such as ``"BF16"``.
        shape: its shape; a weight is (out, in).
        file: the file that holds it.
        start: where its bytes begin, from the start of the file.
        size: how many bytes it has.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    size: int

    @property
    def cut(self) -> str:
        """What to say of a file that has fewer bytes than its header told."""
        return f"{self.file} ends within {self.name}. Was it changed meanwhile? Merge again."

    def read(self) -> np.ndarray:
        """Its numbers, of one of `FLOATS`."""
        with self.file.open("rb") as file:
            file.seek(self.start)
            data = file.read(self.size)
        if len(data) < self.size:
            raise CheckpointError(self.cut)
        return np.frombuffer(data, FLOATS[self.dtype]).reshape(self.shape)


@dataclass(frozen=True)
class Shard:
    """A safetensors file to write: its header, and the tensors in the order of their bytes.

    Args:
        name: its path in the folder.
        header: the header's length and the header, as they stand at the start of the file.
        tensors: where each tensor's bytes are to be had.
    """

    name: str
    header: bytes
    tensors: tuple[Stored, ...]

    @property
    def size(self) -> int:
        """The bytes of the whole file."""
        return len(self.header) + sum(tensor.size for tensor in self.tensors)

    @property
    def metadata(self) -> dict[str, str]:
        """What the header says beside the tensors."""
        return parse_json(self.header[8:]).get("__metadata__") or {}


@dataclass(frozen=True)
class Checkpoint:
    """A Hugging Face folder, to be written again.

    Args:
        folder: where it lies.
        shards: its safetensors files.
        indexed: whether it has an index of its shards.
        texts: side files that are to be written with other contents than the folder's.
        is_file: whether it is one file alone, whose neighbours are not part of it.
    """

    folder: Path
    shards: tuple[Shard, ...]
    indexed: bool = False
    texts: Mapping[str, str] = field(default_factory=dict)
    is_file: bool = False

    @property
    def tensors(self) -> dict[str, Stored]:
        """All tensors by name."""
        return {tensor.name: tensor for shard in self.shards for tensor in shard.tensors}

    @property
    def size(self) -> int:
        """The bytes of all shards."""
        return sum(shard.size for shard in self.shards)

    @property
    def name(self) -> str:
        """What to call it in messages: the folder, or the one file."""
        return str(self.folder / self.shards[0].name if self.is_file else self.folder)

    def json(self, name: str) -> dict[str, Any]:
        """A file of a JSON object, as it is to be written; an empty one if there is none."""
        from jaxmix.models.checkpoint import read_json  # not at the top: see read_checkpoint

        if name in self.texts:
            return parse_json(self.texts[name])
        path = self.folder / name
        return read_json(path) if path.exists() else {}


def read_checkpoint(folder: str | os.PathLike[str]) -> Checkpoint:
    """Reads the headers of a Hugging Face folder, whole or sharded, or of one file.

    Args:
        folder: where the files lie, or the one file; its name then ends in ``.safetensors``. Or a
            hub id, ``owner/name``, whose files are then downloaded.

    Returns:
        The checkpoint; of the tensors nothing is read.

    Raises:
        CheckpointError: if it is no such folder, or a file is missing or damaged.

    Example:
        >>> import tempfile
        >>> from safetensors.numpy import save_file
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_file({"norm.weight": np.ones(3)}, folder + "/model.safetensors")
        ...     read_checkpoint(folder).tensors["norm.weight"].shape
        (3,)

    Source: https://github.com/huggingface/safetensors, format.
    """
    # Not at the top: jaxmix.models brings Flax, which takes a second, and this file is on the face.
    from jaxmix.models.checkpoint import safetensors_file, tensor_files

    folder = base_folder(folder)
    if folder.suffix == ".safetensors" and folder.is_file():
        safetensors_file(folder)
        return Checkpoint(folder.parent, (read_shard(folder.parent, folder),), is_file=True)
    if not folder.is_dir():
        if folder.exists() and (mistaken := no_base(folder)):
            raise CheckpointError(f"{folder} {mistaken}")
        what = "is a file" if folder.exists() else "does not exist"
        raise CheckpointError(
            f"{folder} {what}, expected a Hugging Face folder with safetensors, or the id of a "
            f"repository on the hub, 'owner/name'.{near_paths(str(folder))}"
        )
    if not is_model(folder) and (mistaken := no_base(folder)):
        raise CheckpointError(f"{folder} {mistaken}")
    files = dict.fromkeys(tensor_files(folder).values())
    # Like transformers, tensor_files takes a whole file before an index, which is stale then.
    indexed = not (folder / SINGLE_FILE).exists()
    return Checkpoint(folder, tuple(read_shard(folder, file) for file in files), indexed)


def read_shard(folder: Path, file: Path) -> Shard:
    """A file's header. That it is whole and has no holes is checked where files are listed."""
    with file.open("rb") as opened:
        length = opened.read(8)
        text = opened.read(int.from_bytes(length, "little"))
    header = length + text
    tensors = []
    for name, told in parse_json(text).items():
        if name != "__metadata__":
            begin, end = told["data_offsets"]
            place = (file, len(header) + begin, end - begin)
            tensors.append(Stored(name, told["dtype"], tuple(told["shape"]), *place))
    tensors.sort(key=lambda tensor: (tensor.start, tensor.size))
    return Shard(file.relative_to(folder).as_posix(), header, tuple(tensors))
