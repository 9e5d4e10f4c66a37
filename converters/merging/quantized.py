"""Quantized checkpoints: fp8 with scales is dequantized when told so, all else is refused.

fp8 is W = scale · Q, with one scale for a tensor or for each row (``weight_scale``), or for each
block of 128 × 128 (DeepSeek's ``weight_scale_inv``, which despite its name is multiplied too).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from jaxmix.converters.huggingface import CONFIG_FILE, FLOATS, Checkpoint, Shard, Stored
from jaxmix.converters.merging.rewriting import with_config, with_tensors
from jaxmix.errors import LayoutError, listing, option

__all__ = ["Packed", "dequantized", "is_packed", "refusal"]

FP8: dict[str, Any] = {"F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2}
_CONFIG = "quantization_config"
_SCALES = ("_scale_inv", "_scale")
# What lies beside a weight of fp8 for the sake of activations, and means nothing without it.
_BESIDE = ("input_scale", "output_scale", "activation_scale", "input_scale_inv")
# Parts of modules whose weights other methods keep in integers.
_PARTS = ("qweight", "weight_packed", "W_q", "codes", "SCB", "weight.absmax", "weight_blocks")


@dataclass(frozen=True)
class Packed(Stored):
    """A tensor of fp8, to be written in bfloat16; what it is read as is float32.

    Args:
        packed: the tensor in the file.
        scale: its scale; None for 1.
        block: how many rows and columns have one scale, where these are blocks.
    """

    packed: Stored
    scale: Stored | None
    block: tuple[int, ...]

    def rows(self, part: slice, codes: np.ndarray) -> np.ndarray:
        """A run of rows in float32, of their codes (rows, …)."""
        values = codes.view(FP8[self.packed.dtype]).astype(np.float32)
        if self.scale is None:
            return values
        scale = self.scale.read().astype(np.float32)
        if scale.size == 1:
            return values * scale.reshape(())
        scale = scale.reshape(*scale.shape, *[1] * (len(self.shape) - scale.ndim))
        for axis, size in enumerate(self.shape):
            if scale.shape[axis] not in (1, size):
                scale = np.repeat(scale, self.block[axis], axis)
            if axis == 0 and scale.shape[0] > 1:
                scale = scale[part]
            elif scale.shape[axis] > 1:
                scale = scale[(slice(None),) * axis + (slice(size),)]
        return values * scale


def is_packed(tensor: Stored) -> bool:
    """Whether a tensor is of fp8, and is to be dequantized."""
    return isinstance(tensor, Packed)


def dequantized(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with its tensors of fp8 in bfloat16, and no scales.

    Args:
        checkpoint: the base.

    Returns:
        The checkpoint to write; itself where nothing is of fp8.

    Raises:
        LayoutError: if a scale is missing, or does not fit.
    """
    tensors = checkpoint.tensors
    found, wrong = {}, []
    for name, tensor in tensors.items():
        if tensor.dtype in FP8:
            made = _packed(tensor, tensors, checkpoint)
            if isinstance(made, str):
                wrong.append(f"{name} {tensor.shape}: {made}")
            else:
                found[name] = made
    if wrong:
        raise LayoutError(
            f"{checkpoint.name}: tensors of fp8 that can't be dequantized, expected one scale for "
            f"a tensor, a row or a block:{listing(wrong)}\nDequantize the checkpoint with the "
            "library that made it."
        )
    if not found:
        return checkpoint
    gone = {name for tensor in found.values() if (name := tensor.scale and tensor.scale.name)}
    for name in found:
        gone |= {f"{name.rpartition('.')[0]}.{part}" for part in _BESIDE}

    def change(shard: Shard) -> Iterator[Stored]:
        kept = [found.get(one.name, one) for one in shard.tensors if one.name not in gone]
        # Wide dtypes first, as safetensors has them, so that each tensor is aligned.
        return iter(sorted(kept, key=lambda one: -one.size // max(1, math.prod(one.shape))))

    def told(metadata: dict[str, Any]) -> None:
        if isinstance(metadata.get("total_size"), int):
            kept = [found.get(n, one) for n, one in tensors.items() if n not in gone]
            metadata["total_size"] = sum(one.size for one in kept)

    new = with_tensors(checkpoint, change, told)
    if not checkpoint.json(CONFIG_FILE):
        return new
    config = checkpoint.json(CONFIG_FILE)
    said = {key: "bfloat16" for key in ("torch_dtype", "dtype") if key in config}
    return with_config(new, said, without=[_CONFIG])


def _packed(tensor: Stored, tensors: Mapping[str, Stored], checkpoint: Checkpoint) -> Packed | str:
    """A tensor with its scale, or what is wrong with that."""
    method = _method(checkpoint)
    scale = next((s for end in _SCALES if (s := tensors.get(f"{tensor.name}{end}"))), None)
    size = 2 * math.prod(tensor.shape)
    place = (tensor.name, "BF16", tensor.shape, tensor.file, tensor.start, size)
    if scale is None:
        if method:
            return f"no {tensor.name}_scale_inv, no {tensor.name}_scale"
        return Packed(*place, tensor, None, ())  # a plain cast, as image models are handed around
    if scale.dtype not in FLOATS:
        return f"{scale.name} is {scale.dtype}"
    if math.prod(scale.shape) == 1:
        return Packed(*place, tensor, scale, ())
    told = _quantization(checkpoint).get("weight_block_size") or (128, 128)
    block = (*[1] * (len(tensor.shape) - len(told)), *told)
    if len(scale.shape) > len(tensor.shape):
        return f"{scale.name} has shape {scale.shape}"
    padded = (*scale.shape, *[1] * (len(tensor.shape) - len(scale.shape)))
    for have, size, run in zip(padded, tensor.shape, block, strict=True):
        if have not in (1, size, -(-size // run)):
            return f"{scale.name} has shape {scale.shape}, blocks {block}"
    return Packed(*place, tensor, scale, block)


def refusal(
    checkpoint: Checkpoint, sites: Sequence[str], touched: Mapping[str, Stored]
) -> str | None:
    """What to say of tensors that adapters touch and that are not of floats; None if all are.

    Args:
        checkpoint: the base.
        sites: the adapters' sites.
        touched: the tensors that may be theirs.
    """
    tensors = checkpoint.tensors
    wrong = [
        f"{name} in {tensor.file.name}: {tensor.dtype}"
        for name, tensor in touched.items()
        if tensor.dtype not in FLOATS
    ]
    for site in sites:
        for part in _PARTS:
            for name in (f"{site}.{part}", f"{site}_{part.removeprefix('weight_')}"):
                if (tensor := tensors.get(name)) and f"{site}.weight" not in tensors:
                    wrong.append(f"{name} in {tensor.file.name}: {tensor.dtype}")
    if not wrong:
        return None
    method = _method(checkpoint)
    found = f" ({CONFIG_FILE} says that it is quantized by {method})" if method else ""
    return (
        f"{checkpoint.name}{found}: tensors that can't take an adapter, expected "
        f"{', '.join(FLOATS)}:{listing(wrong)}\nDequantize the checkpoint first: {_how(wrong)}"
    )


def _how(wrong: Sequence[str]) -> str:
    """How to dequantize what was found."""
    if all(line.endswith(tuple(FP8)) for line in wrong):
        return f"{option('dequantize')} writes all of fp8 in bfloat16."
    return (
        "load it in transformers, call model.dequantize() and save it; or merge into the model of "
        "which it was made, and quantize the result."
    )


def _quantization(checkpoint: Checkpoint) -> dict[str, Any]:
    """What config.json says of it, for the whole or for an image model's text."""
    config = checkpoint.json(CONFIG_FILE)
    text = config.get("text_config")
    told = config.get(_CONFIG) or (text.get(_CONFIG) if isinstance(text, dict) else None)
    return told if isinstance(told, dict) else {}


def _method(checkpoint: Checkpoint) -> str | None:
    """The name of the method, if config.json has one."""
    told = _quantization(checkpoint)
    return (
        str(told.get("quant_method") or told.get("quant_algo") or "an unknown method")
        if told
        else None
    )
