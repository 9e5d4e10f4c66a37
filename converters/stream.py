"""`merge_checkpoint`: a Hugging Face folder and adapters in, a merged folder out, by tensors.

First everything that can go wrong is looked at, on shapes alone (`plan`); then shard after shard is
written (`_write`), with one site's tensors in memory. What no adapter touches is not decoded.
"""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jaxmix.adapter import Adapter, Mixable
from jaxmix.converters.groups import Group, plan, table_of
from jaxmix.converters.huggingface import FLOATS, Checkpoint, Stored, read_checkpoint, side_files
from jaxmix.converters.output import checked_output, new_folder
from jaxmix.converters.untie import untied
from jaxmix.errors import CheckpointError
from jaxmix.layout import Layout
from jaxmix.mix import Mix, mix

__all__ = ["Merged", "merge_checkpoint"]

# Bytes written, bytes in all, the shard at hand.
Progress = Callable[[int, int, str], None]

_CHUNK = 8 << 20


@dataclass(frozen=True)
class Merged:
    """What `merge_checkpoint` wrote.

    Args:
        out: the folder.
        shards: its safetensors files.
        changed: the tensors that adapters changed; all others are the base's, byte for byte.
        copied: how many tensors are the base's.
        size: the bytes of all shards.
        untied: the head that was given a tensor of its own, if one was.
        left_out: the base's files that were not copied, each with the reason.
    """

    out: Path
    shards: tuple[str, ...]
    changed: tuple[str, ...]
    copied: int
    size: int
    untied: str | None
    left_out: tuple[str, ...]


def merge_checkpoint(
    base: str | os.PathLike[str],
    adapters: Adapter | Mix | Iterable[Adapter | Mix],
    out: str | os.PathLike[str],
    *,
    layout: Layout | str | None = None,
    force: bool = False,
    untie: bool = False,
    progress: Progress | None = None,
) -> Merged:
    """Merges adapters into a Hugging Face folder of any size: ``W' = Aₙ(… A₁(W))``.

    The output has the same shards, index, order of tensors, dtypes, metadata and side files.
    Tensors that no adapter touches are copied byte for byte; the others are what `compose` makes of
    them. It is written into a folder beside ``out``, which takes its name once it is whole.

    Args:
        base: a Hugging Face folder with ``model.safetensors``, or with shards and their index;
            weights (out, in).
        adapters: one adapter or mix, or several, the one to apply first first.
        out: the folder to write.
        layout: where the sites lie among the tensors; None to find them by name.
        force: replace ``out`` if there is such a checkpoint; it stays until the new one is whole.
        untie: where an adapter touches an embedding that is also the head, give the head a tensor
            of its own, as PEFT's forward needs it: a copy of the base's embedding (V, D).
        progress: called after every few megabytes with the bytes written so far, the bytes in all
            and the name of the shard.

    Returns:
        What was written: the tensors that changed, and the base's files that were left out.

    Raises:
        CheckpointError: if the base is damaged, or the output can't be written there.
        LayoutError: if sites find no tensor, a tied one, or one that is not of floats.
        ShapeError: if factors do not fit their weights.
        AdapterError: if something is no adapter, or two have one name.

    Example:
        >>> import tempfile
        >>> from safetensors.numpy import load_file, save_file
        >>> from jaxmix.families import LoRA
        >>> ones = np.ones((1, 2), np.float32)
        >>> lora = Adapter({"proj": LoRA(a=ones, b=ones[:, :1], scale=1.0)})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     base, out = Path(folder, "base"), Path(folder, "out")
        ...     base.mkdir()
        ...     save_file({"proj.weight": ones, "norm.weight": ones}, base / "model.safetensors")
        ...     merged = merge_checkpoint(base, [0.5 * lora], out)
        ...     load_file(out / "model.safetensors")["proj.weight"], merged.changed
        (array([[1.5, 1.5]], dtype=float32), ('proj.weight',))

    Source: https://github.com/huggingface/safetensors, format; ``peft``'s ``merge_and_unload``.
    """
    mixed = mix(*((adapters,) if isinstance(adapters, Mixable) else adapters))
    checkpoint = read_checkpoint(base)
    place = checked_output(out, [base], force=force, size=checkpoint.size)
    table, is_own = table_of(layout)
    head = None
    if is_own:
        checkpoint, head = untied(checkpoint, mixed, allowed=untie)
    groups, changed = plan(checkpoint, mixed, table)
    files, left_out = side_files(checkpoint)
    with new_folder(place, force=force) as folder:
        _write_side_files(checkpoint, files, folder)
        _write(checkpoint, groups, changed, folder, progress or (lambda *_: None))
    names = tuple(name for name in checkpoint.tensors if name in changed)
    return Merged(
        out=place,
        shards=tuple(shard.name for shard in checkpoint.shards),
        changed=names,
        copied=len(checkpoint.tensors) - len(names),
        size=checkpoint.size,
        untied=head,
        left_out=tuple(left_out),
    )


def _write(
    checkpoint: Checkpoint,
    groups: Mapping[str, Group],
    changed: frozenset[str],
    folder: Path,
    progress: Progress,
) -> None:
    """All shards, in order."""
    done, size = 0, checkpoint.size
    latest: dict[Group, dict[str, np.ndarray]] = {}

    def pieces(tensor: Stored) -> Iterator[Any]:
        if tensor.name not in changed:
            yield from _stored_bytes(tensor)
            return
        # A weight and its bias, which lie side by side as a rule, are computed together.
        group = groups[tensor.name]
        if group not in latest:
            latest.clear()
            latest[group] = group.computed()
        yield _bytes(latest[group][tensor.name], tensor)

    def write(file: BinaryIO, tensor: Stored, shard: str) -> None:
        # In a function of its own, so that nothing holds the last piece while the next is made.
        nonlocal done
        for piece in pieces(tensor):
            done += file.write(piece)
            progress(done, size, shard)

    for shard in checkpoint.shards:
        target = folder / shard.name
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as file:
            done += file.write(shard.header)
            for tensor in shard.tensors:
                write(file, tensor, shard.name)


def _bytes(array: np.ndarray, tensor: Stored) -> memoryview:
    """A computed tensor as it is to lie in the file."""
    assert (array.shape, array.dtype) == (tensor.shape, FLOATS[tensor.dtype])
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _stored_bytes(tensor: Stored) -> Iterator[bytes]:
    """A tensor's bytes as they are, a few megabytes at a time."""
    with tensor.file.open("rb") as file:
        file.seek(tensor.start)
        for start in range(0, tensor.size, _CHUNK):
            size = min(_CHUNK, tensor.size - start)
            piece = file.read(size)
            if len(piece) < size:
                raise CheckpointError(tensor.cut)
            yield piece


def _write_side_files(checkpoint: Checkpoint, names: Iterable[str], folder: Path) -> None:
    """Tokenizer, configs and what else there is."""
    for name in names:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if name in checkpoint.texts:
            target.write_text(checkpoint.texts[name], encoding="utf-8")
        else:
            shutil.copyfile(checkpoint.folder / name, target)
