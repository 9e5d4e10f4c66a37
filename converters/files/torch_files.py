"""Reads files written by ``torch.save`` with torch's restricted unpickler, which runs no code.

Without torch they are refused, with instructions for converting them where torch is installed.
"""

import warnings
import zipfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxmix.errors import CheckpointError, listing
from jaxmix.untrusted.files import ALWAYS, RATIO, check_on_disk, check_regular

__all__ = ["TORCH_SUFFIXES", "has_torch", "is_torch_file", "pickle_recipe", "torch_tensors"]

# The largest compression ratio of a zip of tensors: trained numbers do not compress, zeros do.
_COMPRESSED = 20
TORCH_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")


def is_torch_file(path: Path) -> bool:
    """Whether a file's name has a suffix that is used with ``torch.save``."""
    return path.suffix.lower() in TORCH_SUFFIXES


def has_torch() -> bool:
    """Whether torch can be imported. Does not import it."""
    try:
        return find_spec("torch") is not None
    except ValueError:  # imports are blocked: sys.modules["torch"] is None
        return False


def pickle_recipe(source: str, target: str) -> str:
    """Returns instructions for converting a ``.bin`` file to safetensors with torch."""
    return (
        "jaxmix does not read pickles. With torch:\n"
        f"  tensors = torch.load({source!r}, map_location='cpu', weights_only=True)\n"
        f"  safetensors.torch.save_file(tensors, {target!r})"
    )


def torch_tensors(path: Path) -> dict[str, np.ndarray]:
    """Reads the tensors of a file written by ``torch.save``.

    Args:
        path: A state dict, or a checkpoint with one under ``state_dict``.

    Returns:
        ``{key: array}`` in the file's dtypes, bfloat16 as in ml_dtypes. A dtype that NumPy lacks
        yields an array of objects, which all readers refuse.

    Raises:
        CheckpointError: If torch is not installed or can't read the file without running code, or
            if the file does not hold a dict of named tensors.
    """
    if not has_torch():
        target = str(path.with_suffix(".safetensors"))
        raise CheckpointError(
            f"{path} is a pickle, which jaxmix reads only if torch is installed (pip install "
            f"'jaxmix-peft[torch]'). {pickle_recipe(str(path), target)}"
        )
    contents = _loaded(path)
    if isinstance(contents, Mapping) and isinstance(contents.get("state_dict"), Mapping):
        contents = contents["state_dict"]  # A trainer's checkpoint, which also holds its progress.
    if not isinstance(contents, Mapping):
        raise CheckpointError(
            f"{path} holds a {type(contents).__name__}, expected a dict of tensors by name. "
            "Save the model's state_dict()."
        )
    import torch

    others = {key: x for key, x in contents.items() if not _is_tensor(torch, key, x)}
    if others:
        lines = (f"{key}: {type(x).__name__}" for key, x in others.items())
        raise CheckpointError(
            f"{path} holds entries that are not named tensors:{listing(lines)}\n"
            "Expected a state dict. Save only the tensors, preferably as safetensors."
        )
    # An expanded tensor, with stride 0, has any size for one number in the file.
    sizes = {key: x.numel() * x.element_size() for key, x in contents.items()}
    size = path.stat().st_size
    if sum(sizes.values()) > max(ALWAYS, RATIO * size):
        largest = sorted(sizes, key=lambda key: -sizes[key])[:5]
        raise CheckpointError(
            f"{path} has {size:,} bytes, but its tensors have {sum(sizes.values()):,} bytes; the "
            f"largest are:{listing(f'{key} {tuple(contents[key].shape)}' for key in largest)}\n"
            "Were they expanded? Save them with .contiguous()."
        )
    return {key: _array(torch, x) for key, x in contents.items()}


def _loaded(path: Path) -> Any:
    """Loads the file with torch's restricted unpickler."""
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about its own classes in old files.
            check_regular(path)
            check_on_disk(path)
            _check_zip(path)
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist. Check the path.") from error
    except CheckpointError:
        raise
    except Exception as error:  # Torch raises errors of many types for damaged files.
        reason = str(error).strip().split("\n")[0]
        raise CheckpointError(
            f"{path} can't be read by torch.load(weights_only=True), which runs no code: {reason} "
            "Expected a dict of tensors written by torch.save. Download it again, or convert it to "
            "safetensors if you trust it."
        ) from error


def _check_zip(path: Path) -> None:
    """Refuses a zip that unpacks to far more bytes: torch.save does not compress."""
    if not zipfile.is_zipfile(path):
        return  # the format of old versions
    with zipfile.ZipFile(path) as file:
        unpacked = sum(part.file_size for part in file.infolist())
    if unpacked > max(ALWAYS, _COMPRESSED * (size := path.stat().st_size)):
        raise CheckpointError(
            f"{path} has {size:,} bytes and unpacks to {unpacked:,}, expected a zip written by "
            "torch.save, which is not compressed. Download it again."
        )


def _is_tensor(torch: Any, key: Any, value: Any) -> bool:
    """Whether an entry is an ordinary named tensor."""
    is_tensor = isinstance(key, str) and isinstance(value, torch.Tensor)
    return is_tensor and value.layout == torch.strided and not value.is_meta


def _array(torch: Any, tensor: Any) -> np.ndarray:
    """Converts a tensor to an array with the same bits."""
    tensor = tensor.detach().resolve_conj().resolve_neg().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    try:
        return tensor.numpy()
    except (TypeError, RuntimeError):  # float8 and quantized dtypes
        return np.empty(tensor.shape, object)
