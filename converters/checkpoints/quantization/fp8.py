"""fp8: W = scale · Q, with one scale for a tensor, for each row, or for each block.

DeepSeek's ``weight_scale_inv`` is a factor too, despite its name. Scales may be powers of two,
stored as ``F8_E8M0`` or as bytes with their exponents.
"""

import math
from dataclasses import dataclass

import numpy as np

from jaxmix.converters.checkpoints.huggingface import FLOATS, Stored
from jaxmix.converters.checkpoints.quantization.mxfp4 import power_of_two
from jaxmix.converters.checkpoints.quantization.packed import (
    Packed,
    Problem,
    Readout,
    Source,
    stored_fields,
)
from jaxmix.converters.checkpoints.slicing import read_slice

__all__ = ["FP8", "read"]

FP8 = ("F8_E4M3", "F8_E5M2")
_SCALES = ("_scale_inv", "_scale")
_BLOCK = (128, 128)
# Tensors next to an fp8 weight that serve fp8 activations, unused without the packed weight.
_UNUSED = ("input_scale", "output_scale", "activation_scale", "input_scale_inv")


@dataclass(frozen=True)
class Float8(Packed):
    """A tensor of fp8.

    Args:
        scale: The scale; None for a scale of 1.
        block: The size along each axis of the blocks that share a scale.
    """

    scale: Stored | None
    block: tuple[int, ...]

    def rows(self, part: slice) -> np.ndarray:
        """See `Packed`."""
        values = read_slice(self.main, (part,) if self.shape else ()).astype(np.float32)
        if self.scale is None:
            return values
        if math.prod(self.scale.shape) == 1:
            return _product(values, _floats(self.scale, ()).reshape(()))
        sizes = zip(values.shape, self.block, strict=True)
        blocks = [np.arange(size) // run for size, run in sizes]
        blocks[0] = np.arange(part.start, part.stop) // self.block[0]
        first = blocks[0][0] if blocks[0].size else 0
        scale = _floats(self.scale, (slice(first, first + blocks[0].size),))
        scale = scale.reshape(*scale.shape, *[1] * (values.ndim - scale.ndim))
        blocks[0] = blocks[0] - first
        for axis, indices in enumerate(blocks):
            if self.scale.shape[axis : axis + 1] not in ((), (1,)):
                scale = np.take(scale, indices, axis)
        return _product(values, scale)


def read(source: Source, readout: Readout) -> None:
    """Adds the tensors of fp8, whatever the name of the quantization method.

    Args:
        source: The checkpoint.
        readout: Collects the weights.
    """
    for name, tensor in source.tensors.items():
        if tensor.dtype in FP8:
            module = name.rpartition(".")[0]
            unused = [f"{module}.{part}" for part in _UNUSED]
            scales = [f"{name}{end}" for end in _SCALES if f"{name}{end}" in source.tensors]
            found = _float8(tensor, source, scales)
            if isinstance(found, Problem):
                found = Problem(f"{name} {tensor.shape}: {found.text}")
            readout.add(found, name, *scales[:1], *unused)


def _float8(tensor: Stored, source: Source, scales: list[str]) -> Packed | Problem:
    """Reads a tensor with its scale, or returns the problem with the scale."""
    fields = (*stored_fields(tensor.name, tensor.shape, tensor), tensor, tensor.dtype)
    if not scales:
        if source.settings:
            return Problem(f"{tensor.name}_scale_inv and {tensor.name}_scale are missing")
        return Float8(*fields, None, ())  # a plain cast, as image models are often distributed
    scale = source.tensors[scales[0]]
    if scale.dtype not in (*FLOATS, "F8_E8M0", "U8"):
        return Problem(f"{scale.name} is {scale.dtype}")
    if math.prod(scale.shape) == 1:
        return Float8(*fields, scale, ())
    sizes = source.settings.get("weight_block_size")
    sizes = _BLOCK if sizes is None else sizes
    is_block = isinstance(sizes, list | tuple) and 0 < len(sizes) <= len(tensor.shape)
    if not is_block or not all(type(size) is int and size > 0 for size in sizes):
        return Problem(f"weight_block_size is {sizes!r}, expected a positive integer for each axis")
    block = (*[1] * (len(tensor.shape) - len(sizes)), *sizes)
    if len(scale.shape) > len(tensor.shape):
        return Problem(f"{scale.name} has shape {scale.shape}")
    padded = (*scale.shape, *[1] * (len(tensor.shape) - len(scale.shape)))
    runs = []
    for count, size, run in zip(padded, tensor.shape, block, strict=True):
        if count == -(-size // run):
            runs.append(run)
        elif count and size % count == 0:  # one per row, one for all, or blocks of another size
            runs.append(max(1, size // count))
        else:
            return Problem(f"{scale.name} has shape {scale.shape}, blocks {block}")
    return Float8(*fields, scale, tuple(runs))


def _product(values: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The numbers, some of them perhaps infinite or NaN, as they are for transformers."""
    with np.errstate(over="ignore", invalid="ignore"):
        return values * scale


def _floats(scale: Stored, index: tuple[slice, ...]) -> np.ndarray:
    """Reads a scale in float32."""
    found = read_slice(scale, index)
    return power_of_two(found) if scale.dtype == "U8" else found.astype(np.float32)
