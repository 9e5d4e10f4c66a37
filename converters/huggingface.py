"""Base checkpoints: a Hugging Face folder as bytes that can be written again, tensor by tensor.

A safetensors file is eight bytes (the header's length), a header of JSON, and the tensors' bytes
one after the other. A file with the same tensors of the same shapes and dtypes has the same header,
so headers are copied as they are, and of a tensor that nobody touches only the bytes are read.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxmix.errors import CheckpointError

__all__ = ["FLOATS", "INDEX_FILE", "Checkpoint", "Shard", "Stored", "read_checkpoint", "side_files"]

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
# Files that hold weights in another form, and so would still be those of the base.
_OTHER_WEIGHTS = frozenset(
    ".bin .ckpt .gguf .h5 .msgpack .npz .onnx .onnx_data .ot .pt .pth .safetensors .tflite".split()
)


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


@dataclass(frozen=True)
class Checkpoint:
    """A Hugging Face folder, to be written again.

    Args:
        folder: where it lies.
        shards: its safetensors files.
        indexed: whether it has an index of its shards.
        texts: side files that are to be written with other contents than the folder's.
    """

    folder: Path
    shards: tuple[Shard, ...]
    indexed: bool = False
    texts: Mapping[str, str] = field(default_factory=dict)

    @property
    def tensors(self) -> dict[str, Stored]:
        """All tensors by name."""
        return {tensor.name: tensor for shard in self.shards for tensor in shard.tensors}

    @property
    def size(self) -> int:
        """The bytes of all shards."""
        return sum(shard.size for shard in self.shards)

    def json(self, name: str) -> dict[str, Any]:
        """The folder's file of a JSON object; an empty one if there is no such file."""
        from jaxmix.models.checkpoint import read_json  # not at the top: see read_checkpoint

        path = self.folder / name
        return read_json(path) if path.exists() else {}

    def with_config(self, **fields: Any) -> "Checkpoint":
        """The same with other fields in config.json."""
        from jaxmix.models.checkpoint import read_json  # not at the top: see read_checkpoint

        config = {**read_json(self.folder / CONFIG_FILE), **fields}
        return replace(self, texts={**self.texts, CONFIG_FILE: json.dumps(config, indent=2) + "\n"})

    def with_copy(self, name: str, of: str) -> "Checkpoint":
        """The same with one tensor twice: its shard and the index then have it as ``name`` too.

        The copy comes right after its original. So a file in safetensors' own order (wide dtypes
        first) stays aligned.
        """
        shards = tuple(_with_copy(shard, name, of) for shard in self.shards)
        new = replace(self, shards=shards)
        if not self.indexed:
            return new
        index = self.json(INDEX_FILE)
        index["weight_map"] = dict(_after(index["weight_map"], of, name, index["weight_map"][of]))
        tensor, told = self.tensors[of], index.get("metadata") or {}
        count = math.prod(tensor.shape)
        for key, more in (("total_size", tensor.size), ("total_parameters", count)):
            if isinstance(told.get(key), int):
                told[key] += more
        return replace(new, texts={**self.texts, INDEX_FILE: json.dumps(index, indent=2) + "\n"})


def read_checkpoint(folder: str | os.PathLike[str]) -> Checkpoint:
    """Reads the headers of a Hugging Face folder, whole or sharded.

    Args:
        folder: where the files lie.

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
    from jaxmix.models.checkpoint import tensor_files

    folder = Path(folder).expanduser()
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise CheckpointError(
            f"{folder} {what}, expected a Hugging Face folder with safetensors. To take one from "
            "the hub: hf download OWNER/NAME --local-dir DIR."
        )
    files = dict.fromkeys(tensor_files(folder).values())
    # Like transformers, tensor_files takes a whole file before an index, which is stale then.
    indexed = not (folder / SINGLE_FILE).exists()
    return Checkpoint(folder, tuple(_read_shard(folder, file) for file in files), indexed)


def side_files(checkpoint: Checkpoint) -> tuple[list[str], list[str]]:
    """What else a checkpoint's folder holds: tokenizer, configs, pages.

    Hidden files, links that lead out of the folder (but for those of the hub's cache) and weights
    in other forms are no side files: the last would still be those of the base.

    Args:
        checkpoint: the checkpoint.

    Returns:
        The paths in the folder of the files that belong to it; and of those left out, each with the
        reason.
    """
    shards = {shard.name for shard in checkpoint.shards}
    found: list[str] = []
    left_out: list[str] = []
    for above, folders, files in os.walk(checkpoint.folder):
        here = Path(above).relative_to(checkpoint.folder)
        linked = [name for name in folders if (Path(above) / name).is_symlink()]
        folders[:] = sorted(name for name in folders if name[0] != "." and name not in linked)
        for file in sorted([*files, *linked]):
            name = (here / file).as_posix()
            if file[0] == "." or name in shards:
                continue
            if why := _no_side_file(checkpoint, name):
                left_out.append(f"{name}: {why}")
            else:
                found.append(name)
    return found, left_out


def _no_side_file(checkpoint: Checkpoint, name: str) -> str | None:
    """Why a file is not copied, or None."""
    path = checkpoint.folder / name
    if path.is_symlink() and not _leads_inside(path, checkpoint.folder):
        return "a link that leads out of the folder"
    if not path.is_file():
        return "no plain file"
    is_index = name.endswith(".index.json") and not (checkpoint.indexed and name == INDEX_FILE)
    if path.suffix in _OTHER_WEIGHTS or is_index:
        return "weights that are still the base's"
    # With it in the folder, transformers would put the adapter onto the merged model once more.
    return "an adapter's config" if path.name == "adapter_config.json" else None


def _leads_inside(link: Path, folder: Path) -> bool:
    """Whether a link ends in the folder, or in the hub's cache, where all files are links."""
    end, home = link.resolve(), folder.resolve()
    if end.is_relative_to(home):
        return True
    return home.parent.name == "snapshots" and end.is_relative_to(home.parents[1] / "blobs")


def _read_shard(folder: Path, file: Path) -> Shard:
    """A file's header. That it is whole and has no holes is checked where files are listed."""
    with file.open("rb") as opened:
        length = opened.read(8)
        text = opened.read(int.from_bytes(length, "little"))
    header = length + text
    tensors = []
    for name, told in json.loads(text).items():
        if name != "__metadata__":
            begin, end = told["data_offsets"]
            place = (file, len(header) + begin, end - begin)
            tensors.append(Stored(name, told["dtype"], tuple(told["shape"]), *place))
    tensors.sort(key=lambda tensor: (tensor.start, tensor.size))
    return Shard(file.relative_to(folder).as_posix(), header, tuple(tensors))


def _with_copy(shard: Shard, name: str, of: str) -> Shard:
    """The shard with one of its tensors twice, if it is there."""
    found = next((tensor for tensor in shard.tensors if tensor.name == of), None)
    if found is None:
        return shard
    tensors = []
    for tensor in shard.tensors:
        tensors.extend((tensor, replace(tensor, name=name)) if tensor is found else (tensor,))
    header: dict[str, Any] = {}
    if metadata := json.loads(shard.header[8:]).get("__metadata__"):
        header["__metadata__"] = metadata
    end = 0
    for tensor in tensors:
        begin, end = end, end + tensor.size
        told = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [begin, end]}
        header[tensor.name] = told
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return Shard(shard.name, len(text).to_bytes(8, "little") + text, tuple(tensors))


def _after(table: Mapping[str, str], key: str, new: str, value: str) -> Iterator[tuple[str, str]]:
    """The items of a table, with one more after ``key``."""
    for item in table.items():
        yield item
        if item[0] == key:
            yield new, value
