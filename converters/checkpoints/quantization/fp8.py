"""fp8: W = scale · Q, with one scale for a tensor, for each row, or for each block.

DeepSeek's ``weight_scale_inv`` is multiplied too, despite its name. Scales may be powers of two,
as ``F8_E8M0`` or as bytes with their exponents.
"""

import math
from dataclasses import dataclass

import numpy as np

from jaxmix.converters.checkpoints.huggingface import FLOATS, Stored
from jaxmix.converters.checkpoints.quantization.mxfp4 import power_of_two
from jaxmix.converters.checkpoints.quantization.packed import Packed, Readout, Source, place
from jaxmix.converters.checkpoints.slicing import read_slice

__all__ = ["FP8", "read"]

FP8 = ("F8_E4M3", "F8_E5M2")
_SCALES = ("_scale_inv", "_scale")
_BLOCK = (128, 128)
# What lies beside a weight of fp8 for the sake of activations, and means nothing without it.
_BESIDE = ("input_scale", "output_scale", "activation_scale", "input_scale_inv")


@dataclass(frozen=True)
class Float8(Packed):
    """A tensor of fp8.

    Args:
        scale: its scale; None for 1.
        block: how many numbers share a scale, along each axis.
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
        at = [np.arange(size) // run for size, run in zip(values.shape, self.block, strict=True)]
        at[0] = np.arange(part.start, part.stop) // self.block[0]
        first = at[0][0] if at[0].size else 0
        scale = _floats(self.scale, (slice(first, first + at[0].size),))
        scale = scale.reshape(*scale.shape, *[1] * (values.ndim - scale.ndim))
        at[0] = at[0] - first
        for axis, where in enumerate(at):
            if self.scale.shape[axis : axis + 1] not in ((), (1,)):
                scale = np.take(scale, where, axis)
        return _product(values, scale)


def read(source: Source, readout: Readout) -> None:
    """Adds the tensors of fp8, whatever the method that made them calls itself.

    Args:
        source: the checkpoint.
        readout: where they are added.
    """
    for name, tensor in source.tensors.items():
        if tensor.dtype in FP8:
            module = name.rpartition(".")[0]
            beside = [f"{module}.{part}" for part in _BESIDE]
            scales = [f"{name}{end}" for end in _SCALES if f"{name}{end}" in source.tensors]
            found = _float8(tensor, source, scales)
            if isinstance(found, str):
                found = f"{name} {tensor.shape}: {found}"
            readout.add(found, name, *scales[:1], *beside)


def _float8(tensor: Stored, source: Source, scales: list[str]) -> Packed | str:
    """A tensor with its scale, or what is wrong with that."""
    where = (*place(tensor.name, tensor.shape, tensor), tensor, tensor.dtype)
    if not scales:
        if source.settings:
            return f"no {tensor.name}_scale_inv, no {tensor.name}_scale"
        return Float8(*where, None, ())  # a plain cast, as image models are handed around
    scale = source.tensors[scales[0]]
    if scale.dtype not in (*FLOATS, "F8_E8M0", "U8"):
        return f"{scale.name} is {scale.dtype}"
    if math.prod(scale.shape) == 1:
        return Float8(*where, scale, ())
    told = source.settings.get("weight_block_size")
    told = _BLOCK if told is None else told
    is_block = isinstance(told, list | tuple) and 0 < len(told) <= len(tensor.shape)
    if not is_block or not all(type(size) is int and size > 0 for size in told):
        return f"weight_block_size is {told!r}, expected a positive integer for each axis"
    block = (*[1] * (len(tensor.shape) - len(told)), *told)
    if len(scale.shape) > len(tensor.shape):
        return f"{scale.name} has shape {scale.shape}"
    padded = (*scale.shape, *[1] * (len(tensor.shape) - len(scale.shape)))
    runs = []
    for have, size, run in zip(padded, tensor.shape, block, strict=True):
        if have == -(-size // run):
            runs.append(run)
        elif have and size % have == 0:  # for each row, for all, or in blocks of another size
            runs.append(max(1, size // have))
        else:
            return f"{scale.name} has shape {scale.shape}, blocks {block}"
    return Float8(*where, scale, tuple(runs))


def _product(values: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The numbers, some of them perhaps infinite or NaN, as they are for transformers."""
    with np.errstate(over="ignore", invalid="ignore"):
        return values * scale


def _floats(scale: Stored, index: tuple[slice, ...]) -> np.ndarray:
    """A scale in float32."""
    found = read_slice(scale, index)
    return power_of_two(found) if scale.dtype == "U8" else found.astype(np.float32)
