"""fp8: W = scale · Q, with one scale for a tensor, for each row, or for each block.

DeepSeek's ``weight_scale_inv`` is a factor too, despite its name. Scales may be powers of two,
stored as ``F8_E8M0`` or as bytes with their exponents.

ComfyUI's files have the scale as ``X.scale_weight``, which may also be next to a weight in 16 bits,
and a marker ``scaled_fp8``; newer ones have ``X.weight_scale``, and the format as JSON in the bytes
of ``X.comfy_quant``.
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
from jaxmix.untrusted.files import parse_json

__all__ = ["FP8", "read"]

FP8 = ("F8_E4M3", "F8_E5M2")
_SCALES = ("_scale_inv", "_scale")
_BLOCK = (128, 128)
# Tensors next to an fp8 weight that scale fp8 activations, unused without the packed weight.
_UNUSED = ("input_scale", "output_scale", "activation_scale", "input_scale_inv", "scale_input")
# ComfyUI's scale and markers, and the formats that are fp8 with plain scales.
_SCALE, _FORMAT, _MARKER = "scale_weight", "comfy_quant", "scaled_fp8"
_FORMATS = ("float8_e4m3fn", "float8_e5m2")
_LONGEST = 1 << 16  # bytes of a format


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
    tensors = source.tensors
    is_scaled = any(name.endswith(f".{_SCALE}") for name in tensors)
    for name, tensor in tensors.items():
        module, _, last = name.rpartition(".")
        if last == _MARKER and (is_scaled or tensor.dtype in FP8):
            readout.parts.add(name)
            continue
        scales = [f"{name}{end}" for end in _SCALES if f"{name}{end}" in tensors]
        if last == "weight" and f"{module}.{_SCALE}" in tensors and tensor.dtype in (*FP8, *FLOATS):
            scales.append(f"{module}.{_SCALE}")
        elif tensor.dtype not in FP8:
            continue
        weight = _float8(tensor, source, scales)
        if problem := _problem_of_format(tensors.get(f"{module}.{_FORMAT}")):
            weight = Problem(problem)
        if isinstance(weight, Problem):
            weight = Problem(f"{name} {tensor.shape}: {weight.text}")
        unused = [f"{module}.{part}" for part in (*_UNUSED, _FORMAT)]
        readout.add(weight, name, *scales[:1], *unused)


def _problem_of_format(stored: Stored | None) -> str:
    """Describes why a weight of ComfyUI's newer files is not plain fp8; "" if it is."""
    if stored is None or stored.dtype != "U8" or stored.size > _LONGEST:
        return "" if stored is None else f"{stored.name} is {stored.dtype}"
    try:
        fields = parse_json(read_slice(stored, (slice(0, stored.size),)).tobytes())
    except ValueError:
        fields = None
    name = fields.get("format") if isinstance(fields, dict) else None
    return "" if name in _FORMATS else f"its format is {name!r}, expected one of {_FORMATS}"


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
    """Returns ``values · scale`` without warnings: like transformers, it may be infinite or NaN."""
    with np.errstate(over="ignore", invalid="ignore"):
        return values * scale


def _floats(scale: Stored, index: tuple[slice, ...]) -> np.ndarray:
    """Reads a scale in float32."""
    values = read_slice(scale, index)
    return power_of_two(values) if scale.dtype == "U8" else values.astype(np.float32)
