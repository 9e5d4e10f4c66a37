"""Files that ``torch.save`` wrote: read with torch's own restricted unpickler, which runs no code.

Without torch they are refused, with a recipe that converts them where torch is installed.
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

# Numbers that were trained do not compress; those that are zeros do.
_COMPRESSED = 20
TORCH_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")


def is_torch_file(path: Path) -> bool:
    """Whether a file's name is one that ``torch.save`` is given."""
    return path.suffix.lower() in TORCH_SUFFIXES


def has_torch() -> bool:
    """Whether torch can be imported. It is not imported here."""
    try:
        return find_spec("torch") is not None
    except ValueError:  # it is blocked: sys.modules has None for it
        return False


def pickle_recipe(source: str, target: str) -> str:
    """How to turn a ``.bin`` into safetensors, in torch."""
    return (
        "jaxmix reads no pickles. With torch:\n"
        f"  tensors = torch.load({source!r}, map_location='cpu', weights_only=True)\n"
        f"  safetensors.torch.save_file(tensors, {target!r})"
    )


def torch_tensors(path: Path) -> dict[str, np.ndarray]:
    """Reads the tensors of a file that ``torch.save`` wrote.

    Args:
        path: A state dict, or a checkpoint with one under ``state_dict``.

    Returns:
        ``{key: array}`` in the file's dtypes; bfloat16 is ml_dtypes'. A dtype that NumPy lacks
        comes as an array of objects, which no reader takes.

    Raises:
        CheckpointError: If torch is not installed, can't read the file without running code, or the
            file holds anything but tensors by their names.
    """
    if not has_torch():
        target = str(path.with_suffix(".safetensors"))
        raise CheckpointError(
            f"{path} is a pickle, which is read if torch is installed (pip install "
            f"'jaxmix-peft[torch]'). {pickle_recipe(str(path), target)}"
        )
    found = _loaded(path)
    if isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
        found = found["state_dict"]  # A trainer's checkpoint, which keeps its progress beside it.
    if not isinstance(found, Mapping):
        raise CheckpointError(
            f"{path} holds a {type(found).__name__}, expected a dict of tensors by their names. "
            "Save the model's state_dict()."
        )
    import torch

    others = {key: x for key, x in found.items() if not _is_tensor(torch, key, x)}
    if others:
        lines = (f"{key}: {type(x).__name__}" for key, x in others.items())
        raise CheckpointError(
            f"{path} holds more than tensors by their names:{listing(lines)}\n"
            "Expected a state dict. Save the tensors alone, best as safetensors."
        )
    # An expanded tensor, of stride 0, has any size for one number in the file.
    sizes = {key: x.numel() * x.element_size() for key, x in found.items()}
    size = path.stat().st_size
    if sum(sizes.values()) > max(ALWAYS, RATIO * size):
        largest = sorted(sizes, key=lambda key: -sizes[key])[:5]
        raise CheckpointError(
            f"{path} has {size:,} bytes, and its tensors {sum(sizes.values()):,}; the largest are:"
            f"{listing(f'{key} {tuple(found[key].shape)}' for key in largest)}\n"
            "Were they expanded? Save them with .contiguous()."
        )
    return {key: _array(torch, x) for key, x in found.items()}


def _loaded(path: Path) -> Any:
    """What the file holds, by torch's restricted unpickler."""
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Old files make torch warn of its own old classes.
            check_regular(path)
            check_on_disk(path)
            _check_zip(path)
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist. Give the path of a file.") from error
    except CheckpointError:
        raise
    except Exception as error:  # Torch raises errors of many kinds for a damaged file.
        reason = str(error).strip().split("\n")[0]
        raise CheckpointError(
            f"{path} can't be read by torch.load(weights_only=True), which runs no code: {reason} "
            "Expected a dict of tensors that torch.save wrote. Download it again, or convert it to "
            "safetensors if you trust it."
        ) from error


def _check_zip(path: Path) -> None:
    """Refuses a zip whose parts are far larger than it: torch.save compresses nothing."""
    if not zipfile.is_zipfile(path):
        return  # the format of old versions
    with zipfile.ZipFile(path) as file:
        inside = sum(part.file_size for part in file.infolist())
    if inside > max(ALWAYS, _COMPRESSED * (size := path.stat().st_size)):
        raise CheckpointError(
            f"{path} has {size:,} bytes, and {inside:,} once it is unpacked, expected a zip that "
            "torch.save wrote, which is not compressed. Download it again."
        )


def _is_tensor(torch: Any, key: Any, value: Any) -> bool:
    """Whether an entry is an ordinary tensor under a name."""
    is_tensor = isinstance(key, str) and isinstance(value, torch.Tensor)
    return is_tensor and value.layout == torch.strided and not value.is_meta


def _array(torch: Any, tensor: Any) -> np.ndarray:
    """A tensor as an array with the same bits."""
    tensor = tensor.detach().resolve_conj().resolve_neg().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    try:
        return tensor.numpy()
    except (TypeError, RuntimeError):  # float8 and quantized dtypes
        return np.empty(tensor.shape, object)
