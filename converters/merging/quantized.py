"""Dequantizes packed checkpoints on request; without it, refuses adapters on packed weights."""

import math
from collections.abc import Iterable, Iterator
from typing import Any

from jaxmix.converters.checkpoints.huggingface import CONFIG_FILE, FLOATS, Checkpoint, Shard, Stored
from jaxmix.converters.checkpoints.quantization.packed import Packed
from jaxmix.converters.checkpoints.quantization.table import (
    CONFIGS,
    PARTS,
    READERS,
    SETTINGS_FILES,
    look,
    method_of,
)
from jaxmix.converters.merging.rewriting import with_config, with_tensors
from jaxmix.errors import LayoutError, listing, option

__all__ = ["dequantized", "is_packed", "refusal", "stale"]

_DTYPES = ("torch_dtype", "dtype")


def is_packed(tensor: Stored) -> bool:
    """Whether a tensor is to be dequantized."""
    return isinstance(tensor, Packed)


def dequantized(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with its packed weights in bfloat16, and without what packed them.

    Args:
        checkpoint: the base.

    Returns:
        The checkpoint to write; itself where nothing is packed.

    Raises:
        LayoutError: if the method has no reader, or something does not fit.
    """
    readout = look(checkpoint)
    if readout.wrong:
        raise LayoutError(
            f"{_named(checkpoint)}: tensors that can't be dequantized:{listing(readout.wrong)}\n"
            f"{_how(checkpoint)}"
        )
    if not readout.packed:
        return checkpoint
    found = {packed.main.name: packed for packed in readout.packed.values()}

    def change(shard: Shard) -> Iterator[Stored]:
        kept = [
            found.get(tensor.name, tensor)
            for tensor in shard.tensors
            if tensor.name in found or tensor.name not in readout.parts
        ]
        # Wide dtypes first, as safetensors has them, so that each tensor is aligned.
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

    new = with_tensors(checkpoint, change, update)
    config = checkpoint.json(CONFIG_FILE)
    if not config:
        return new
    fields: dict[str, Any] = _in_bfloat16(config)
    for name, part in config.items():
        if isinstance(part, dict) and any(key in part for key in CONFIGS):
            fields[name] = part | _in_bfloat16(part)
    return with_config(new, fields, without=CONFIGS)


def stale(checkpoint: Checkpoint, files: Iterable[str]) -> list[str]:
    """The side files that tell how the base was quantized, if the checkpoint no longer is.

    Args:
        checkpoint: what is to be written.
        files: the side files.
    """
    if not any(map(is_packed, checkpoint.tensors.values())):
        return []
    return [name for name in files if name in SETTINGS_FILES]


def _in_bfloat16(config: dict[str, Any]) -> dict[str, str]:
    """The fields for the dtype that a config has, as they are to be."""
    return {key: "bfloat16" for key in _DTYPES if key in config}


def refusal(checkpoint: Checkpoint, leaves: Iterable[str]) -> str | None:
    """Why adapters can't be merged into tensors that are not of floats; None if all are.

    Args:
        checkpoint: the base.
        leaves: the names of the tensors that adapters may touch.
    """
    tensors, readout = checkpoint.tensors, look(checkpoint)
    # Parts of weights that can be read; parts of the others are listed one by one.
    known = {*readout.parts} if not readout.wrong else set[str]()
    unread: list[str] = []
    read: list[str] = []
    for leaf in leaves:
        tensor = tensors.get(leaf)
        if packed := readout.packed.get(leaf):
            read.append(f"{leaf} in {packed.file.name}: {packed.kind}")
        elif tensor and tensor.dtype not in FLOATS:
            unread.append(f"{leaf} in {tensor.file.name}: {tensor.dtype}")
        elif not tensor:
            module = leaf.removesuffix(".weight")
            names = [f"{module}.{part}" for part in PARTS] + [f"{leaf}_blocks"]
            found = [tensors[name] for name in names if name in tensors and name not in known]
            unread += [f"{part.name} in {part.file.name}: {part.dtype}" for part in found]
    if not read and not unread:
        return None
    how = _how(checkpoint) if unread else _what_option_does()
    if read and readout.wrong:
        others = listing(readout.wrong)
        how = f"Other packed tensors can't be dequantized:{others}\n{_how(checkpoint)}"
    return (
        f"{_named(checkpoint)}: tensors that can't take an adapter, expected {', '.join(FLOATS)}:"
        f"{listing([*read, *unread])}\n{how}"
    )


def _named(checkpoint: Checkpoint) -> str:
    """A checkpoint, and its method."""
    method = method_of(checkpoint)
    return checkpoint.name + (f" (quantized by {method})" if method else "")


def _what_option_does() -> str:
    """What to do about weights that can be read."""
    return f"{option('dequantize')} writes all that is packed in bfloat16, and merges into that."


def _how(checkpoint: Checkpoint) -> str:
    """What to do about weights that can't be read."""
    method = method_of(checkpoint)
    if method in READERS:
        return "Download or save the checkpoint again, or merge into the model it was made from."
    named = f"not {method}" if method else "by the method that config.json names; none is named"
    return (
        f"{option('dequantize')} reads {', '.join(READERS)}, {named}. Load the model in "
        "transformers, call model.dequantize() and save it; or merge into the model that it was "
        "made from, and quantize the result."
    )
