"""The files of a Hugging Face folder: config.json and safetensors, whole or in shards.

Everything is memory-mapped and read when it is asked for, without torch; nothing is unpickled.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import ml_dtypes  # noqa: F401 (NumPy knows bfloat16 by its name only once this is imported)
import numpy as np
from safetensors import SafetensorError, safe_open

from jaxmix.errors import CheckpointError, listing
from jaxmix.untrusted.files import check_regular, header_problem, parse_json, read_small

__all__ = [
    "indexed_files",
    "indexed_names",
    "read_json",
    "read_tensors",
    "safetensors_file",
    "tensor_files",
]

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


def tensor_files(folder: str | os.PathLike[str]) -> dict[str, Path]:
    """Which file of a Hugging Face folder holds which tensor.

    Only the headers are read. Like transformers, ``model.safetensors`` goes before an index.

    Args:
        folder: where the files lie.

    Returns:
        ``{name: file}``, by PyTorch's names.

    Raises:
        CheckpointError: if there is neither a whole file nor an index, if a file is missing or
            damaged, if the index leads out of the folder, or if it and the shards disagree.

    Example:
        >>> import tempfile, numpy as np
        >>> from safetensors.numpy import save_file
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_file({"norm.weight": np.ones(3)}, folder + "/model.safetensors")
        ...     {name: file.name for name, file in tensor_files(folder).items()}
        {'norm.weight': 'model.safetensors'}

    Source: what ``PreTrainedModel.save_pretrained`` of transformers writes.
    """
    folder = Path(folder)
    single, index = folder / SINGLE_FILE, folder / INDEX_FILE
    if single.exists():
        return {name: single for name in safetensors_file(single).keys()}
    if not index.exists():
        raise CheckpointError(_no_weights(folder))
    return indexed_files(index)


def indexed_files(index: Path) -> dict[str, Path]:
    """Which of the files that an index names holds which tensor.

    Args:
        index: A file of JSON whose ``weight_map`` gives each tensor's name its file.

    Returns:
        ``{name: file}``.

    Raises:
        CheckpointError: If a file is missing or damaged, the index leads out of its folder, or it
            and the shards disagree.
    """
    said = _weight_map(index)
    found: dict[str, list[Path]] = {}
    for file in dict.fromkeys(said.values()):
        for name in safetensors_file(file).keys():
            found.setdefault(name, []).append(file)
    wrong = [
        f"{name}: in {_names(found.get(name, []))}, the index says {_names([said.get(name)])}"
        for name in sorted(said.keys() | found.keys())
        if found.get(name) != [said.get(name)]
    ]
    if wrong:
        raise CheckpointError(
            f"{index} and its shards disagree:{listing(wrong)}\n"
            "Are files of two checkpoints mixed? Download or save the folder again."
        )
    return said


def indexed_names(index: Path) -> tuple[str, ...]:
    """The names of the files that an index names, each once. The files need not be there.

    Args:
        index: A file of JSON whose ``weight_map`` gives each tensor's name its file.

    Returns:
        Paths in the index's folder.

    Raises:
        CheckpointError: If it is no index, or leads out of its folder.
    """
    files = dict.fromkeys(_weight_map(index).values())
    return tuple(file.relative_to(index.parent).as_posix() for file in files)


def read_tensors(folder: str | os.PathLike[str]) -> Mapping[str, np.ndarray]:
    """The tensors of a Hugging Face folder, each read from its file when it is asked for.

    Args:
        folder: where the files lie.

    Returns:
        A mapping of PyTorch's names to arrays in PyTorch's orientation (a weight is (out, in)) and
        the file's dtypes; bfloat16 is ml_dtypes'. ``dict(read_tensors(folder))`` reads all.

    Raises:
        CheckpointError: as `tensor_files`; also on reading a tensor of a dtype that NumPy lacks.

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
    """Tensors in files; each file is mapped once and stays so as long as this lives."""

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
                f"{file}: {name} has dtype {dtype}, which can't be read: {error}. "
                "Expected float64, float32, float16 or bfloat16. Save the checkpoint unquantized."
            ) from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def __repr__(self) -> str:
        return f"<{len(self)} tensors in {_names(list(self._open))}>"


def read_json(path: Path) -> dict[str, Any]:
    """A file that holds a JSON object.

    Args:
        path: the file.

    Returns:
        The object as a dict.

    Raises:
        CheckpointError: if it is missing, or is no JSON, or no object.
    """
    try:
        values = parse_json(read_small(path))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(
            f"{path.parent} has no {path.name}; found {_folder_text(path.parent)}.\n"
            "Give a folder that transformers' save_pretrained wrote."
        ) from error
    except CheckpointError:
        raise
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}. Save or download it again.") from error
    if isinstance(values, dict):
        return values
    raise CheckpointError(f"{path} holds a {type(values).__name__}, expected a JSON object.")


def safetensors_file(path: Path) -> Any:
    """A file's handle: its header is read and its length checked.

    Args:
        path: the file.

    Returns:
        What `safetensors.safe_open` gives.

    Raises:
        CheckpointError: if it is missing or damaged.
    """
    try:
        check_regular(path)
        return safe_open(path, framework="numpy")
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path} is missing; found {_folder_text(path.parent)}. "
            "Download the folder again, whole."
        ) from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is no whole safetensors file: {header_problem(path) or f'{error}.'} Download "
            "or save it again."
        ) from error


def _weight_map(index: Path) -> dict[str, Path]:
    """The index's ``{name: file}``, all files inside its folder."""
    found = read_json(index).get("weight_map")
    if (
        not isinstance(found, dict)
        or not found
        or not all(isinstance(f, str) for f in found.values())
    ):
        raise CheckpointError(
            f"{index}: weight_map is {type(found).__name__}, expected an object of tensors' "
            "names and their files' names. Download or save it again."
        )
    # By its spelling, not by where it really lies: the hub's cache is made of links.
    astray = [f"{name}: {file}" for name, file in found.items() if not _is_inside(file)]
    if astray:
        raise CheckpointError(
            f"{index}: files that would lie outside its folder:{listing(astray)}\n"
            "Expected the names of files beside it. Do not trust this checkpoint."
        )
    return {name: index.parent / file for name, file in found.items()}


def _is_inside(file: str) -> bool:
    """Whether a path is one that can be, and stays in its folder, on any system."""
    try:
        file.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    path = PurePosixPath(file)
    odd = "\\" in file or ":" in file or "\0" in file
    return bool(path.parts) and not odd and not path.is_absolute() and ".." not in path.parts


def _no_weights(folder: Path) -> str:
    """What is there instead, and what to do about it."""
    text = f"{folder} has neither {SINGLE_FILE} nor {INDEX_FILE}; found {_folder_text(folder)}."
    if folder.is_dir() and any(file.suffix in (".bin", ".pt", ".pth") for file in folder.iterdir()):
        return (
            f"{text} jaxmix reads no .bin files, since they are pickles: load the folder with "
            "transformers and save it with save_pretrained, which writes safetensors."
        )
    return f"{text} Give a folder that transformers' save_pretrained wrote."


def _folder_text(folder: Path) -> str:
    """What lies in a folder, for a message."""
    if not folder.is_dir():
        return "no such folder"
    names = sorted(entry.name for entry in folder.iterdir())
    return ", ".join(names[:8]) + (" …" if len(names) > 8 else "") if names else "an empty folder"


def _names(files: list[Path] | list[Path | None]) -> str:
    """Files by their names."""
    return ", ".join(file.name for file in files if file is not None) or "none"
