"""Dequantizes packed checkpoints on request; without it, refuses adapters on packed weights."""

import math
from collections.abc import Iterable, Iterator
from typing import Any

from jaxmix.converters.checkpoints.huggingface import CONFIG_FILE, FLOATS, Checkpoint, Shard, Stored
from jaxmix.converters.checkpoints.quantization.methods import (
    CONFIGS,
    PARTS,
    READERS,
    SETTINGS_FILES,
    find_packed,
    quantization_method,
)
from jaxmix.converters.checkpoints.quantization.packed import Packed
from jaxmix.converters.merging.rewriting import with_config, with_tensors
from jaxmix.errors import LayoutError, listing, option

__all__ = ["dequantized", "is_packed", "refusal", "stale_files"]

_DTYPES = ("torch_dtype", "dtype")
# ComfyUI's field in a file's metadata, with the format of each layer.
_METADATA = ("_quantization_metadata",)


def is_packed(tensor: Stored) -> bool:
    """Whether a tensor is a packed weight that is written dequantized."""
    return isinstance(tensor, Packed)


def dequantized(checkpoint: Checkpoint) -> Checkpoint:
    """Returns the checkpoint with its packed weights in bfloat16, and without their parts.

    Args:
        checkpoint: The base.

    Returns:
        The checkpoint to write; the same one if nothing is packed.

    Raises:
        LayoutError: If the method has no reader, or packed tensors are malformed.
    """
    readout = find_packed(checkpoint)
    if readout.problems:
        raise LayoutError(
            f"{_description(checkpoint)}: tensors that can't be dequantized:"
            f"{listing(readout.problems)}\n{_advice(checkpoint)}"
        )
    if not readout.packed:
        return checkpoint
    packed_by_main = {packed.main.name: packed for packed in readout.packed.values()}

    def change(shard: Shard) -> Iterator[Stored]:
        kept = [
            packed_by_main.get(tensor.name, tensor)
            for tensor in shard.tensors
            if tensor.name in packed_by_main or tensor.name not in readout.parts
        ]
        # Wide dtypes first, as safetensors sorts them, so each tensor is aligned.
        return iter(
            sorted(kept, key=lambda tensor: -tensor.size // max(1, math.prod(tensor.shape)))
        )

    def update(metadata: dict[str, Any]) -> None:
        kept = [tensor for shard in checkpoint.shards for tensor in change(shard)]
        totals = {
            "total_size": sum(tensor.size for tensor in kept),
            "total_parameters": sum(math.prod(tensor.shape) for tensor in kept),
        }
        for key, total in totals.items():
            if isinstance(metadata.get(key), int):
                metadata[key] = total

    result = with_tensors(checkpoint, change, update, without=_METADATA)
    config = checkpoint.json(CONFIG_FILE)
    if not config:
        return result
    fields: dict[str, Any] = _in_bfloat16(config)
    for name, part in config.items():
        if isinstance(part, dict) and any(key in part for key in CONFIGS):
            fields[name] = part | _in_bfloat16(part)
    return with_config(result, fields, without=CONFIGS)


def stale_files(checkpoint: Checkpoint, files: Iterable[str]) -> list[str]:
    """Returns the side files with quantization settings, if the checkpoint is dequantized.

    Args:
        checkpoint: The checkpoint to write.
        files: The side files.
    """
    if not any(map(is_packed, checkpoint.tensors.values())):
        return []
    return [name for name in files if name in SETTINGS_FILES]


def _in_bfloat16(config: dict[str, Any]) -> dict[str, str]:
    """Returns the dtype fields that a config has, set to bfloat16."""
    return {key: "bfloat16" for key in _DTYPES if key in config}


def refusal(checkpoint: Checkpoint, leaves: Iterable[str]) -> str | None:
    """Describes why adapters can't be merged into non-float tensors; None if all are floats.

    Args:
        checkpoint: The base.
        leaves: The names of the tensors that adapters may touch.
    """
    tensors, readout = checkpoint.tensors, find_packed(checkpoint)
    # Parts of readable weights are not listed; parts of the others are listed individually.
    known = {*readout.parts} if not readout.problems else set[str]()
    unreadable: list[str] = []
    readable: list[str] = []
    for leaf in leaves:
        tensor = tensors.get(leaf)
        if packed := readout.packed.get(leaf):
            readable.append(f"{leaf} in {packed.file.name}: {packed.kind}")
        elif tensor and tensor.dtype not in FLOATS:
            unreadable.append(f"{leaf} in {tensor.file.name}: {tensor.dtype}")
        elif not tensor:
            module = leaf.removesuffix(".weight")
            names = [f"{module}.{part}" for part in PARTS] + [f"{leaf}_blocks"]
            parts = [tensors[name] for name in names if name in tensors and name not in known]
            unreadable += [f"{part.name} in {part.file.name}: {part.dtype}" for part in parts]
    if not readable and not unreadable:
        return None
    advice = _advice(checkpoint) if unreadable else _dequantize_advice()
    if readable and readout.problems:
        others = listing(readout.problems)
        advice = f"Other packed tensors can't be dequantized:{others}\n{_advice(checkpoint)}"
    return (
        f"{_description(checkpoint)}: adapters can't be merged into these tensors, expected dtypes "
        f"{', '.join(FLOATS)}:{listing([*readable, *unreadable])}\n{advice}"
    )


def _description(checkpoint: Checkpoint) -> str:
    """Returns the checkpoint's name and its quantization method."""
    method = quantization_method(checkpoint)
    return checkpoint.name + (f" (quantized by {method})" if method else "")


def _dequantize_advice() -> str:
    """Says what to do about packed weights that can be read."""
    return f"Use {option('dequantize')} to write packed weights in bfloat16 and merge into them."


def _advice(checkpoint: Checkpoint) -> str:
    """Says what to do about packed weights that can't be read."""
    method = quantization_method(checkpoint)
    if method in READERS:
        return "Download or save the checkpoint again, or merge into the unquantized model."
    reason = f"not {method}" if method else "but config.json names no method"
    return (
        f"{option('dequantize')} reads {', '.join(READERS)}, {reason}. Load the model in "
        "transformers, call model.dequantize() and save it; or merge into the unquantized model, "
        "and quantize the result."
    )
