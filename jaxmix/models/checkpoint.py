"""Reads the files of a Hugging Face folder: config.json and safetensors, possibly in shards.

Files are memory-mapped and tensors are read on access, without torch. Nothing is unpickled.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import ml_dtypes  # noqa: F401 (NumPy knows bfloat16 by its name only once this is imported)
import numpy as np
from safetensors import SafetensorError

from jaxmix.errors import CheckpointError, listing
from jaxmix.models.main_file import folder_text, main_file
from jaxmix.untrusted.files import parse_json, read_small
from jaxmix.untrusted.safetensors import open_safetensors
from jaxmix.weight_files import is_index

__all__ = [
    "indexed_files",
    "indexed_names",
    "read_json",
    "read_tensors",
    "safetensors_file",
    "tensor_files",
]


def tensor_files(folder: str | os.PathLike[str], variant: str | None = None) -> dict[str, Path]:
    """Returns the file of each tensor of a folder of transformers or of a component of diffusers.

    Only the headers are read. If there are several sets of weights, the set that the library reads
    by default is used, see ``jaxmix.weight_files``.

    Args:
        folder: The folder.
        variant: The variant to read, such as ``"fp16"``; None for the files without a variant.

    Returns:
        ``{name: file}``, with PyTorch's names.

    Raises:
        CheckpointError: If there is neither a single file nor an index, or several variants; a file
            is missing or damaged, the index points outside the folder, or the index and the shards
            disagree.

    Example:
        >>> import tempfile, numpy as np
        >>> from safetensors.numpy import save_file
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_file({"norm.weight": np.ones(3)}, folder + "/model.safetensors")
        ...     {name: file.name for name, file in tensor_files(folder).items()}
        {'norm.weight': 'model.safetensors'}

    Source: what ``PreTrainedModel.save_pretrained`` of transformers writes.
    """
    path = main_file(Path(folder), variant)
    if is_index(path):
        return indexed_files(path)
    return {name: path for name in safetensors_file(path).keys()}


def indexed_files(index: Path) -> dict[str, Path]:
    """Returns the file of each tensor according to an index, and checks the files.

    Args:
        index: A JSON file whose ``weight_map`` maps tensors' names to files.

    Returns:
        ``{name: file}``.

    Raises:
        CheckpointError: If a file is missing or damaged, the index points outside its folder, or
            the index and the shards disagree.
    """
    stated = _weight_map(index)
    holders: dict[str, list[Path]] = {}
    for file in dict.fromkeys(stated.values()):
        for name in safetensors_file(file).keys():
            holders.setdefault(name, []).append(file)
    wrong = [
        f"{name}: in {_names(holders.get(name, []))}, the index says {_names([stated.get(name)])}"
        for name in sorted(stated.keys() | holders.keys())
        if holders.get(name) != [stated.get(name)]
    ]
    if wrong:
        raise CheckpointError(
            f"{index} and its shards disagree:{listing(wrong)}\n"
            "Are files of two checkpoints mixed? Download or save the folder again."
        )
    return stated


def indexed_names(index: Path) -> tuple[str, ...]:
    """Returns the names of the files of an index without repetition. The files need not exist.

    Args:
        index: A JSON file whose ``weight_map`` maps tensors' names to files.

    Returns:
        Paths relative to the index's folder.

    Raises:
        CheckpointError: If the index is invalid or points outside its folder.
    """
    files = dict.fromkeys(_weight_map(index).values())
    return tuple(file.relative_to(index.parent).as_posix() for file in files)


def read_tensors(folder: str | os.PathLike[str]) -> Mapping[str, np.ndarray]:
    """Returns the tensors of a Hugging Face folder, each read from its file on access.

    Args:
        folder: The folder.

    Returns:
        A mapping of PyTorch's names to arrays with PyTorch's axis order (a weight is (out, in)) and
        the file's dtypes, with bfloat16 from ml_dtypes. ``dict(read_tensors(folder))`` reads all.

    Raises:
        CheckpointError: As for `tensor_files`; also on reading a tensor whose dtype NumPy lacks.

    Example:
        >>> import tempfile, numpy as np
        >>> from safetensors.numpy import save_file
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_file({"norm.weight": np.ones(3)}, folder + "/model.safetensors")
        ...     tensors = read_tensors(folder)
        ...     len(tensors), tensors["norm.weight"]
        (1, array([1., 1., 1.]))

    Source: https://huggingface.co/docs/safetensors.
    """
    return _Tensors(tensor_files(folder))


class _Tensors(Mapping[str, np.ndarray]):
    """A mapping of tensors in files; each file is memory-mapped once."""

    def __init__(self, files: dict[str, Path]):
        self._files = files
        self._open = {file: safetensors_file(file) for file in dict.fromkeys(files.values())}

    def __getitem__(self, name: str) -> np.ndarray:
        file = self._files[name]
        try:
            return self._open[file].get_tensor(name)
        except (SafetensorError, TypeError, AttributeError) as error:
            dtype = self._open[file].get_slice(name).get_dtype()
            raise CheckpointError(
                f"{file}: {name} has dtype {dtype}, which NumPy does not have. Expected float64, "
                "float32, float16 or bfloat16. Save the checkpoint unquantized."
            ) from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def __repr__(self) -> str:
        return f"<{len(self)} tensors in {_names(list(self._open))}>"


def read_json(path: Path) -> dict[str, Any]:
    """Reads a file that contains a JSON object.

    Args:
        path: The file.

    Returns:
        The object as a dict.

    Raises:
        CheckpointError: If the file is missing or does not contain a JSON object.
    """
    try:
        values = parse_json(read_small(path))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(
            f"{path.parent} has no {path.name}; found {folder_text(path.parent)}.\n"
            "Pass a folder that transformers' save_pretrained wrote."
        ) from error
    except CheckpointError:
        raise
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}. Save or download it again.") from error
    if isinstance(values, dict):
        return values
    raise CheckpointError(f"{path} holds a {type(values).__name__}, expected a JSON object.")


def safetensors_file(path: Path) -> Any:
    """Opens a safetensors file, which reads its header and checks its length.

    Args:
        path: The file.

    Returns:
        The handle from `safetensors.safe_open`.

    Raises:
        CheckpointError: If the file is missing or damaged.
    """
    try:
        return open_safetensors(path)
    except CheckpointError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        raise CheckpointError(
            f"{path} is missing; found {folder_text(path.parent)}. "
            "Download the complete folder again."
        ) from error


def _weight_map(index: Path) -> dict[str, Path]:
    """Returns the ``{name: file}`` of an index, and checks that all files are in its folder."""
    files = read_json(index).get("weight_map")
    if (
        not isinstance(files, dict)
        or not files
        or not all(isinstance(f, str) for f in files.values())
    ):
        raise CheckpointError(
            f"{index}: weight_map is {type(files).__name__}, expected an object that maps names of "
            "tensors to names of files. Download or save it again."
        )
    # The path is checked as written, not as it resolves: the hub's cache consists of links.
    outside = [f"{name}: {file}" for name, file in files.items() if not _is_inside(file)]
    if outside:
        raise CheckpointError(
            f"{index}: files outside its folder:{listing(outside)}\n"
            "Expected names of files next to it. Do not trust this checkpoint."
        )
    return {name: index.parent / file for name, file in files.items()}


def _is_inside(file: str) -> bool:
    """Whether a path is valid and stays in its folder, on every operating system."""
    try:
        file.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    path = PurePosixPath(file)
    is_special = "\\" in file or ":" in file or "\0" in file
    return bool(path.parts) and not is_special and not path.is_absolute() and ".." not in path.parts


def _names(files: list[Path] | list[Path | None]) -> str:
    """Lists the names of files."""
    return ", ".join(file.name for file in files if file is not None) or "none"
