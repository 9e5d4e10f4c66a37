"""Headers, indexes and configs of checkpoints whose output has other tensors than the base."""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from jaxmix.converters.checkpoints.huggingface import (
    CONFIG_FILE,
    INDEX_FILE,
    Checkpoint,
    Shard,
    Stored,
)
from jaxmix.untrusted.files import parse_json

__all__ = ["total", "with_config", "with_copy", "with_tensors"]


def with_config(
    checkpoint: Checkpoint, fields: Mapping[str, Any], without: Iterable[str] = ()
) -> Checkpoint:
    """The checkpoint with other fields in config.json, which it must have; a file alone has none.

    Args:
        checkpoint: the base.
        fields: what the config is to say.
        without: the fields that go, from the parts for an image model's text and the like too.

    Raises:
        CheckpointError: if the folder has no config.json.
    """
    if checkpoint.is_file:
        return checkpoint
    from jaxmix.models.checkpoint import read_json  # not at the top: see read_checkpoint

    config = checkpoint.json(CONFIG_FILE) or read_json(checkpoint.folder / CONFIG_FILE)
    config |= fields
    for part in (config, *config.values()):
        if isinstance(part, dict):
            for name in without:
                part.pop(name, None)
    return _with_text(checkpoint, CONFIG_FILE, config)


def with_copy(checkpoint: Checkpoint, name: str, of: str) -> Checkpoint:
    """The checkpoint with one tensor twice: its shard and the index then have it as ``name`` too.

    The copy comes right after its original. So a file in safetensors' own order (wide dtypes first)
    stays aligned.
    """
    tensor = checkpoint.tensors[of]

    def twice(shard: Shard) -> Iterator[Stored]:
        for one in shard.tensors:
            yield one
            if one.name == of:
                yield replace(one, name=name)

    return with_tensors(checkpoint, twice, total([tensor]))


def total(
    more: Iterable[Stored], without: Iterable[Stored] = ()
) -> Callable[[dict[str, Any]], None]:
    """What tensors that come and tensors that go change in the index's sums, for `with_tensors`."""
    come, go = tuple(more), tuple(without)
    sizes = {
        "total_size": sum(x.size for x in come) - sum(x.size for x in go),
        "total_parameters": sum(math.prod(x.shape) for x in come)
        - sum(math.prod(x.shape) for x in go),
    }

    def change(metadata: dict[str, Any]) -> None:
        for key, size in sizes.items():
            if isinstance(metadata.get(key), int):
                metadata[key] += size

    return change


def with_tensors(
    checkpoint: Checkpoint,
    change: Callable[[Shard], Iterable[Stored]],
    told: Callable[[dict[str, Any]], None],
) -> Checkpoint:
    """The checkpoint with other tensors in its shards; the index says so.

    Args:
        checkpoint: the base.
        change: from a shard to the tensors that it is to have, in order.
        told: changes what the index says beside its map.
    """
    shards = []
    for shard in checkpoint.shards:
        tensors = tuple(change(shard))
        same = [one.name for one in tensors] == [one.name for one in shard.tensors] and all(
            a is b for a, b in zip(tensors, shard.tensors, strict=True)
        )
        header = shard.header if same else _header(tensors, shard)
        shards.append(Shard(shard.name, header, tensors))
    new = replace(checkpoint, shards=tuple(shards))
    if not checkpoint.indexed:
        return new
    index = checkpoint.json(INDEX_FILE)
    index["weight_map"] = dict(_where(new, index["weight_map"]))
    if isinstance(index.get("metadata"), dict):
        told(index["metadata"])
    return _with_text(new, INDEX_FILE, index)


def _where(checkpoint: Checkpoint, before: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """The index's map: its own order, and what is new after what it lies behind in the file."""
    behind: dict[str | None, list[tuple[str, str]]] = {}
    last = None
    for shard in checkpoint.shards:
        for tensor in shard.tensors:
            if tensor.name in before:
                last = tensor.name
            else:
                behind.setdefault(last, []).append((tensor.name, shard.name))
    there = checkpoint.tensors
    yield from behind.get(None, ())
    for name, file in before.items():
        if name in there:
            yield name, file
        yield from behind.get(name, ())


def _header(tensors: Iterable[Stored], shard: Shard) -> bytes:
    """The header of a file with these tensors, its length in front."""
    metadata = parse_json(shard.header[8:]).get("__metadata__")
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for tensor in tensors:
        begin, end = end, end + tensor.size
        told = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [begin, end]}
        header[tensor.name] = told
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _with_text(checkpoint: Checkpoint, name: str, data: Any) -> Checkpoint:
    """The checkpoint with a side file of JSON in other words."""
    return replace(checkpoint, texts={**checkpoint.texts, name: json.dumps(data, indent=2) + "\n"})
