"""Rewrites headers, indexes and configs for outputs that have other tensors than the base."""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from jaxmix.converters.checkpoints.huggingface import CONFIG_FILE, Checkpoint, Shard, Stored
from jaxmix.models.checkpoint import read_json

__all__ = ["adjust_totals", "with_config", "with_copy", "with_tensors"]


def with_config(
    checkpoint: Checkpoint, fields: Mapping[str, Any], without: Iterable[str] = ()
) -> Checkpoint:
    """Returns the checkpoint with changed fields in config.json; a single file is returned as is.

    Args:
        checkpoint: The base.
        fields: The new fields.
        without: The fields to remove, also from nested configs such as ``text_config``.

    Raises:
        CheckpointError: If the folder has no config.json.
    """
    if checkpoint.is_file:
        return checkpoint
    config = checkpoint.json(CONFIG_FILE) or read_json(checkpoint.folder / CONFIG_FILE)
    config |= fields
    for part in (config, *config.values()):
        if isinstance(part, dict):
            for name in without:
                part.pop(name, None)
    return _with_text(checkpoint, CONFIG_FILE, config)


def with_copy(checkpoint: Checkpoint, name: str, of: str) -> Checkpoint:
    """Returns the checkpoint with a copy of the tensor ``of`` under another name.

    The copy follows its original, so a file in safetensors' own order (wide dtypes first) stays
    aligned.
    """
    tensor = checkpoint.tensors[of]

    def add_copy(shard: Shard) -> Iterator[Stored]:
        for stored in shard.tensors:
            yield stored
            if stored.name == of:
                yield replace(stored, name=name)

    return with_tensors(checkpoint, add_copy, adjust_totals([tensor]))


def adjust_totals(
    added: Iterable[Stored], removed: Iterable[Stored] = ()
) -> Callable[[dict[str, Any]], None]:
    """Returns a function for `with_tensors` that adjusts the totals in an index's metadata."""
    more, less = tuple(added), tuple(removed)
    sizes = {
        "total_size": sum(x.size for x in more) - sum(x.size for x in less),
        "total_parameters": sum(math.prod(x.shape) for x in more)
        - sum(math.prod(x.shape) for x in less),
    }

    def change(metadata: dict[str, Any]) -> None:
        for key, size in sizes.items():
            if isinstance(metadata.get(key), int):
                metadata[key] += size

    return change


def with_tensors(
    checkpoint: Checkpoint,
    change: Callable[[Shard], Iterable[Stored]],
    update_metadata: Callable[[dict[str, Any]], None],
    *,
    without: Iterable[str] = (),
) -> Checkpoint:
    """Returns the checkpoint with other tensors in its shards and its index.

    Args:
        checkpoint: The base.
        change: Returns the new tensors of a shard, in order.
        update_metadata: Changes the index's metadata in place.
        without: Fields to remove from the metadata of files whose tensors change.
    """
    shards = []
    for shard in checkpoint.shards:
        tensors = tuple(change(shard))
        is_same = [x.name for x in tensors] == [x.name for x in shard.tensors] and all(
            a is b for a, b in zip(tensors, shard.tensors, strict=True)
        )
        header = shard.header if is_same else _header(tensors, shard, without)
        shards.append(Shard(shard.name, header, tensors))
    new = replace(checkpoint, shards=tuple(shards))
    if checkpoint.index is None:
        return new
    index = checkpoint.json(checkpoint.index)
    index["weight_map"] = dict(_weight_map(new, index["weight_map"]))
    if isinstance(index.get("metadata"), dict):
        update_metadata(index["metadata"])
    return _with_text(new, checkpoint.index, index)


def _weight_map(checkpoint: Checkpoint, before: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yields the index's map in its old order, new tensors after their predecessors in the file."""
    followers: dict[str | None, list[tuple[str, str]]] = {}
    last = None
    for shard in checkpoint.shards:
        for tensor in shard.tensors:
            if tensor.name in before:
                last = tensor.name
            else:
                followers.setdefault(last, []).append((tensor.name, shard.name))
    tensors = checkpoint.tensors
    yield from followers.get(None, ())
    for name, file in before.items():
        if name in tensors:
            yield name, file
        yield from followers.get(name, ())


def _header(tensors: Iterable[Stored], shard: Shard, without: Iterable[str]) -> bytes:
    """Returns the header of a file with these tensors, preceded by its length."""
    dropped = frozenset(without)
    metadata = {key: text for key, text in shard.metadata.items() if key not in dropped}
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for tensor in tensors:
        begin, end = end, end + tensor.size
        offsets = [begin, end]
        fields = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": offsets}
        header[tensor.name] = fields
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _with_text(checkpoint: Checkpoint, name: str, data: Any) -> Checkpoint:
    """Returns the checkpoint with new contents for a side file of JSON."""
    return replace(checkpoint, texts={**checkpoint.texts, name: json.dumps(data, indent=2) + "\n"})
