"""The model in a checkpoint's folder, as the readers of adapters need it."""

import os
from pathlib import Path

import numpy as np

from jaxmix.converters.adapters.common.base_model import BaseModel, orientations
from jaxmix.converters.adapters.common.components import join_models
from jaxmix.converters.checkpoints.conv1d import conv1d_pattern
from jaxmix.converters.checkpoints.huggingface import FLOATS, Checkpoint, read_checkpoint
from jaxmix.converters.checkpoints.quantization import find_packed, quantization_method, unpacked
from jaxmix.converters.names import modules_of
from jaxmix.errors import CheckpointError

__all__ = ["folder_model"]


def folder_model(folder: str | os.PathLike[str], variant: str | None = None) -> BaseModel:
    """Returns the model in a folder, a file or on the hub, whose weights are read when needed.

    Packed weights are unpacked as they are read.

    Args:
        folder: As in `read_checkpoint`. The names in a pipeline start with the component.
        variant: As there.

    Returns:
        The model.

    Raises:
        CheckpointError: If there is no checkpoint, or it is damaged.
    """
    return _model(read_checkpoint(folder, variant), Path(folder))


def _model(checkpoint: Checkpoint, folder: Path) -> BaseModel:
    """The model in a checkpoint, which is described by its folder or file."""
    if checkpoint.components:
        parts = {name: _model(part, part.folder) for name, part in checkpoint.components.items()}
        return join_models(parts, str(folder))
    readout, method = find_packed(checkpoint), quantization_method(checkpoint)
    tensors = unpacked(checkpoint, readout)
    stored = {
        name.removesuffix(".weight"): tensor
        for name, tensor in tensors.items()
        if tensor.dtype in FLOATS and not name.endswith(".bias")
    }
    shapes = {name: tensor.shape for name, tensor in stored.items()}
    # Names alone are enough for many adapters, and a merge reports such weights.
    unreadable = {
        name.removesuffix(".weight"): None
        for name in sorted(readout.parts)
        if name.endswith(".weight") and name not in tensors
    }

    def read(name: str) -> np.ndarray:
        if name not in stored:
            raise CheckpointError(
                f"the adapter needs the weight of {name}, which can't be read from {description}. "
                "Use the unquantized checkpoint."
            )
        return stored[name].read()

    def read_bias(name: str) -> np.ndarray | None:
        tensor = tensors.get(f"{name}.bias")
        return None if tensor is None else tensor.read()

    is_packed = method and readout.problems
    description = f"{folder}, with weights packed by {method}" if is_packed else str(folder)
    biases = {name: tensor.shape for name, tensor in tensors.items() if name.endswith(".bias")}
    pattern = conv1d_pattern(checkpoint)
    conv1d = orientations(shapes, biases, pattern)
    memory = modules_of(checkpoint)
    return BaseModel(
        {**unreadable, **shapes}, read, description, read_bias, conv1d, in_memory=memory
    )
