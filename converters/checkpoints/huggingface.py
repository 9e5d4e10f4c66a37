"""Checkpoints of transformers and diffusers: headers, and where each tensor's bytes are stored.

A safetensors file consists of eight bytes (the header's length), a header of JSON, and the tensors'
bytes one after the other. A file with the same tensor names, shapes and dtypes has the same header,
so headers are copied unchanged, as are the bytes of tensors that no adapter touches.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxmix.converters.checkpoints.pipelines import component_folders, is_pipeline
from jaxmix.converters.files.hub import base_folder
from jaxmix.converters.files.wrong_inputs import describe_non_base, is_model
from jaxmix.errors import CheckpointError, listing, option
from jaxmix.models.checkpoint import read_json, safetensors_file, tensor_files
from jaxmix.models.main_file import described_variants, main_file
from jaxmix.untrusted.files import parse_json
from jaxmix.weight_files import is_index, variants, weights_files

__all__ = [
    "CONFIG_FILE",
    "FLOATS",
    "Checkpoint",
    "Shard",
    "Stored",
    "read_checkpoint",
    "read_shard",
]

CONFIG_FILE = "config.json"

# safetensors' names of the dtypes of weights that adapters can change.
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
        name: The PyTorch name.
        dtype: safetensors' name of the dtype, such as ``"BF16"``.
        shape: The shape; a weight is (out, in).
        file: The file that holds the tensor.
        start: The position of its first byte in the file.
        size: The number of bytes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    size: int

    @property
    def truncation_message(self) -> str:
        """The message for a file with fewer bytes than its header states."""
        return (
            f"{self.file} ends within the tensor {self.name}. Was the file changed while it was "
            "being read? Merge again."
        )

    def read(self) -> np.ndarray:
        """Reads the tensor, whose dtype is one of `FLOATS`."""
        with self.file.open("rb") as file:
            file.seek(self.start)
            data = file.read(self.size)
        if len(data) < self.size:
            raise CheckpointError(self.truncation_message)
        return np.frombuffer(data, FLOATS[self.dtype]).reshape(self.shape)


@dataclass(frozen=True)
class Shard:
    """A safetensors file to write: its header, and the tensors in the order of their bytes.

    Args:
        name: The path in the folder.
        header: The header's length and the header, as at the start of the file.
        tensors: The source of each tensor's bytes.
        prefix: The prefix of the tensors' names that the names in the header lack: the component
            of a pipeline, as in ``"unet."``.
    """

    name: str
    header: bytes
    tensors: tuple[Stored, ...]
    prefix: str = ""

    @property
    def size(self) -> int:
        """The number of bytes of the whole file."""
        return len(self.header) + sum(tensor.size for tensor in self.tensors)

    @property
    def metadata(self) -> dict[str, str]:
        """The metadata in the header."""
        return parse_json(self.header[8:]).get("__metadata__") or {}

    def in_component(self, component: str) -> "Shard":
        """Returns the shard as part of a pipeline, with the component in all names."""
        prefix = f"{component}."
        tensors = tuple(replace(t, name=prefix + t.name) for t in self.tensors)
        return Shard(f"{component}/{self.name}", self.header, tensors, prefix)


@dataclass(frozen=True)
class Checkpoint:
    """A folder of transformers or diffusers, as it was read or is to be written.

    Args:
        folder: The folder.
        shards: The safetensors files.
        index: The name of the index of the shards; None for a single file of weights.
        texts: New contents of side files that change, by name.
        is_file: Whether it is a single file, to which no other file of the folder belongs.
        components: The checkpoint of each component with weights, if it is a pipeline of diffusers.
            The pipeline's own shards and tensors have the component in their names:
            ``unet/diffusion_pytorch_model.safetensors``, ``unet.conv_in.weight``.
    """

    folder: Path
    shards: tuple[Shard, ...]
    index: str | None = None
    texts: Mapping[str, str] = field(default_factory=dict)
    is_file: bool = False
    components: Mapping[str, "Checkpoint"] = field(default_factory=dict)

    @property
    def tensors(self) -> dict[str, Stored]:
        """All tensors by name."""
        return {tensor.name: tensor for shard in self.shards for tensor in shard.tensors}

    @property
    def size(self) -> int:
        """The number of bytes of all shards."""
        return sum(shard.size for shard in self.shards)

    @property
    def name(self) -> str:
        """The path of the folder or the single file, for messages."""
        return str(self.folder / self.shards[0].name if self.is_file else self.folder)

    def json(self, name: str) -> dict[str, Any]:
        """Returns the JSON object of a side file, as it is to be written; empty if absent."""
        if name in self.texts:
            return parse_json(self.texts[name])
        path = self.folder / name
        return read_json(path) if path.exists() else {}


def read_checkpoint(folder: str | os.PathLike[str], variant: str | None = None) -> Checkpoint:
    """Reads the headers of a folder of transformers or diffusers, or of a single file.

    Args:
        folder: The folder of a model, sharded or not, or of a pipeline with ``model_index.json``; a
            file whose name ends in ``.safetensors``; or a hub id, ``owner/name``, which is
            downloaded.
        variant: Which of several variants of the weights to read, such as ``"fp16"``. The
            components of a pipeline that lack it are read without it, as by diffusers.

    Returns:
        The checkpoint. No tensor is read.

    Raises:
        CheckpointError: If the folder is not a checkpoint, a file is missing or damaged, or there
            is no such variant.

    Example:
        >>> import tempfile
        >>> from safetensors.numpy import save_file
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_file({"norm.weight": np.ones(3)}, folder + "/model.safetensors")
        ...     read_checkpoint(folder).tensors["norm.weight"].shape
        (3,)

    Source: https://github.com/huggingface/safetensors, format.
    """
    folder = base_folder(folder, variant)
    if variant is not None and not folder.is_dir():
        raise CheckpointError(
            f"{option('variant', variant)} chooses among the files of a folder, and {folder} is "
            "not a folder. Leave it out."
        )
    if folder.suffix == ".safetensors" and folder.is_file():
        safetensors_file(folder)
        return Checkpoint(folder.parent, (read_shard(folder.parent, folder),), is_file=True)
    if not folder.is_dir():
        if description := describe_non_base(folder):
            raise CheckpointError(f"{folder} {description}")
        raise CheckpointError(
            f"{folder} is a file, expected a Hugging Face folder with safetensors, a safetensors "
            "file, or the id of a repository on the hub, 'owner/name'."
        )
    if is_pipeline(folder):
        return _read_pipeline(folder, variant)
    if not is_model(folder) and (description := describe_non_base(folder)):
        raise CheckpointError(f"{folder} {description}")
    files = dict.fromkeys(tensor_files(folder, variant).values())
    main = main_file(folder, variant)
    index = main.name if is_index(main) else None
    return Checkpoint(folder, tuple(read_shard(folder, file) for file in files), index)


def _read_pipeline(folder: Path, variant: str | None) -> Checkpoint:
    """Reads the headers of all components of a pipeline that have weights in safetensors."""
    folders = component_folders(folder)
    weighty = {name: path for name, path in folders.items() if weights_files(path)}
    having = [name for name, path in weighty.items() if variant and variant in variants(path)]
    if variant is not None and weighty and not having:
        lines = [f"{name}: {described_variants(path)}" for name, path in weighty.items()]
        raise CheckpointError(
            f"{folder}: no component has weights of the variant {variant!r}, found:"
            f"{listing(lines)}\nChoose one of them, or leave out {option('variant', variant)}."
        )
    components = {
        name: read_checkpoint(path, variant if name in having else None)
        for name, path in weighty.items()
    }
    if not components:
        raise CheckpointError(
            f"{folder} is a pipeline of which no component has weights in safetensors; found the "
            f"components {', '.join(folders) or 'none'}. Save it with diffusers' save_pretrained."
        )
    shards = (
        shard.in_component(name) for name, part in components.items() for shard in part.shards
    )
    return Checkpoint(folder, tuple(shards), components=components)


def read_shard(folder: Path, file: Path, prefix: str = "") -> Shard:
    """Reads a file's header, which was validated when the checkpoint's files were listed.

    Args:
        folder: The checkpoint's folder.
        file: The file.
        prefix: As in `Shard`.
    """
    with file.open("rb") as opened:
        length = opened.read(8)
        text = opened.read(int.from_bytes(length, "little"))
    header = length + text
    tensors = []
    for name, fields in parse_json(text).items():
        if name != "__metadata__":
            begin, end = fields["data_offsets"]
            position = (file, len(header) + begin, end - begin)
            full = prefix + name
            tensors.append(Stored(full, fields["dtype"], tuple(fields["shape"]), *position))
    tensors.sort(key=lambda tensor: (tensor.start, tensor.size))
    return Shard(file.relative_to(folder).as_posix(), header, tuple(tensors), prefix)
