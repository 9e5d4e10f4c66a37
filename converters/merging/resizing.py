"""Embeddings and heads for which an adapter brings more rows than the base has, or fewer.

After ``resize_token_embeddings`` PEFT saves the embedding and the head whole. So the base's rows
are kept, those that it lacks come from the first adapter that saved them, and what the adapters do
is done to that: with PEFT's strength of 1 the result is the file's.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxmix.adapter import words
from jaxmix.converters.checkpoints.huggingface import CONFIG_FILE, FLOATS, Checkpoint, Shard, Stored
from jaxmix.converters.merging.grown import Grown, grown
from jaxmix.converters.merging.grown import new as new_tensor
from jaxmix.converters.merging.labels import label_fields
from jaxmix.converters.merging.rewriting import total, with_config, with_tensors
from jaxmix.errors import LayoutError, ShapeError, listing, option
from jaxmix.families import Rebase, Replace, Tokens, Update, parts_of
from jaxmix.mixing import Mix
from jaxmix.placement.layout import Layout, Part
from jaxmix.placement.ties import EMBEDDINGS, HEADS

__all__ = ["resized"]

# What else has a row for each token: biases of heads.
_BIASES = (*(f"{head}.bias" for head in HEADS), "cls.predictions.bias", "final_logits_bias")
_SIZES = ("vocab_size", "n_words")
_OTHER_MODELS = ("vision_config", "audio_config", "qformer_config")


@dataclass(frozen=True)
class _Wanted:
    """A tensor that adapters want with other rows.

    Args:
        site: The site whose tensor it is.
        tensor: The base's.
        rows: How many rows the adapters have.
        extra: The rows that the base lacks; None if no adapter has all of them.
        is_base: Whether these are the resized base's own, which a tied head has too.
    """

    site: str
    tensor: Stored
    rows: int
    extra: np.ndarray | None
    is_base: bool

    @property
    def text(self) -> str:
        """What was found, for messages."""
        shape = (self.rows, *self.tensor.shape[1:])
        return f"{self.site}: the adapter is for {shape}, but {self.tensor.name} has shape " + str(
            self.tensor.shape
        )


def resized(
    checkpoint: Checkpoint,
    mixed: Mix,
    layout: Layout,
    *,
    allowed: bool,
    labels: bool = False,
    untied: str | None = None,
) -> tuple[Checkpoint, dict[str, tuple[int, int]]]:
    """Gives embeddings and heads as many rows as the adapters have.

    Args:
        checkpoint: The base.
        mixed: The adapters.
        layout: Where their sites lie.
        allowed: Whether to resize; if not, an adapter that needs it is an error.
        labels: Whether to resize heads for labels, in any case.
        untied: The head that is a copy of the base's embedding.

    Returns:
        The checkpoint, and ``{tensor: (rows before, rows now)}``.

    Raises:
        ShapeError: If this is not allowed, adapters disagree, or rows are missing.
    """
    wanted = {one.tensor.name: one for one in _wanted(checkpoint, mixed, layout)}
    if not wanted:
        return checkpoint, {}
    if not allowed and not (labels and not any(map(_is_vocabulary, _sites(wanted)))):
        raise ShapeError(
            f"{checkpoint.name} has another number of tokens or labels than the adapters:"
            f"{listing(one.text for one in wanted.values())}\nIf they were trained on this model, "
            f"resized, {option('resize')} gives these tensors the "
            f"adapters' rows, and says so in {CONFIG_FILE}."
        )
    made = {name: _grown(one) for name, one in wanted.items() if one.extra is not None}
    lost = [one.text for one in wanted.values() if one.extra is None]
    vocabulary = {
        (one.tensor.shape[0], one.rows) for one in wanted.values() if _is_vocabulary(one.site)
    }
    for before, now in vocabulary:
        lost += _add_partners(checkpoint, before, now, made, wanted, untied)
    if lost or len(vocabulary) > 1:
        raise ShapeError(
            f"{checkpoint.name} can't be resized, since no adapter has the rows that it lacks:"
            f"{listing(lost or sorted(one.text for one in wanted.values()))}\nSave the adapter "
            "with its embeddings (save_embedding_layers=True in PEFT's save_pretrained), or merge "
            "into the base that it was trained on, resized and saved by transformers."
        )
    changes = {name: (checkpoint.tensors[name].shape, one.shape) for name, one in made.items()}
    out = _with(checkpoint, made)
    fields = _fields(out, vocabulary, {one.rows for one in wanted.values()})
    if fields and not out.is_file:
        out = with_config(out, fields)
    return out, {name: (_rows(old), _rows(new)) for name, (old, new) in changes.items()}


def _sites(wanted: Mapping[str, _Wanted]) -> list[str]:
    return [one.site for one in wanted.values()]


def _rows(shape: tuple[int, ...]) -> int:
    """The number of tokens; ``final_logits_bias`` is (1, V)."""
    return shape[-1] if shape[0] == 1 else shape[0]


def _grown(one: _Wanted) -> Grown:
    assert one.extra is not None
    return grown(one.tensor, one.rows, one.extra)


def _with(checkpoint: Checkpoint, made: Mapping[str, Grown]) -> Checkpoint:
    """The checkpoint with these tensors in the places of its own."""

    def change(shard: Shard) -> Iterator[Stored]:
        return (made.get(tensor.name, tensor) for tensor in shard.tensors)

    before = [checkpoint.tensors[name] for name in made]
    return with_tensors(checkpoint, change, total(made.values(), without=before))


def _fields(
    checkpoint: Checkpoint, vocabulary: set[tuple[int, int]], rows: set[int]
) -> dict[str, Any]:
    """What config.json has to say."""
    config = checkpoint.json(CONFIG_FILE)
    for before, now in vocabulary:
        return _with_vocabulary(config, before, now)
    return label_fields(config, rows.pop()) if len(rows) == 1 else {}


def _with_vocabulary(config: Mapping[str, Any], before: int, now: int) -> dict[str, Any]:
    """The fields that hold the number of tokens: the model's own, or those of its text's part."""
    fields: dict[str, Any] = {name: now for name in _SIZES if config.get(name) == before}
    for name, part in config.items():
        if isinstance(part, dict) and name not in _OTHER_MODELS:
            inner = {key: now for key in _SIZES if part.get(key) == before}
            if inner:
                fields[name] = {**part, **inner}
    if fields:
        return fields
    text = config.get("text_config")
    if isinstance(text, dict):
        return {"text_config": {**text, "vocab_size": now}}
    return {"vocab_size": now}


def _is_vocabulary(site: str) -> bool:
    """Whether a site has a row for each token."""
    is_bias = f"{site}.bias".endswith(_BIASES)
    return is_bias or site.rpartition(".")[2] in EMBEDDINGS or site.endswith(HEADS)


def _add_partners(
    checkpoint: Checkpoint,
    before: int,
    now: int,
    made: dict[str, Grown],
    wanted: Mapping[str, _Wanted],
    untied: str | None,
) -> Iterator[str]:
    """Resizes what else has a row for each token, in ``made``; yields what can't be.

    Rows that go are cut everywhere. New rows of a bias are zero, as transformers has them; those of
    a tied head are the embedding's.
    """
    is_tied = checkpoint.json(CONFIG_FILE).get("tie_word_embeddings") is True
    for name, tensor in checkpoint.tensors.items():
        if name in wanted or tensor.dtype not in FLOATS:
            continue
        module, _, kind = name.rpartition(".")
        if name.endswith(_BIASES) and tensor.shape in ((before,), (1, before)):
            array = np.zeros((*tensor.shape[:-1], now), FLOATS[tensor.dtype])
            count = min(before, now)
            array[..., :count] = tensor.read()[..., :count]
            made[name] = new_tensor(name, tensor.dtype, array, tensor.file)
        elif kind == "weight" and _is_vocabulary(module) and tensor.shape[:1] == (before,):
            shape = (now, *tensor.shape[1:])
            twins = [
                one
                for twin, one in made.items()
                if one.shape == shape
                and (is_tied or (name == untied and twin in wanted and wanted[twin].is_base))
            ]
            if now < before:
                made[name] = grown(tensor, now, np.zeros((0, *tensor.shape[1:]), np.float32))
            elif twins:
                made[name] = grown(tensor, now, twins[0].extra)
            else:
                yield f"{name} has {before} rows of {now}, and no adapter saved it"


def _wanted(checkpoint: Checkpoint, mixed: Mix, layout: Layout) -> Iterator[_Wanted]:
    """The tensors, outside of layers, for which adapters have another number of rows."""
    tensors, disagreeing = checkpoint.tensors, []
    for site, word in words(mixed.parts).items():
        if re.search(r"\.\d+\.", site):
            continue
        updates = [part for _, update in word for part in parts_of(update)]
        for kind in ("weight", "bias"):
            leaf = _leaf(site, kind, layout, tensors)
            if leaf is None or leaf.dtype not in FLOATS or not leaf.shape:
                continue
            sizes = _sizes(updates, kind, leaf.shape)
            if len(sizes) > 1:
                disagreeing.append(f"{site}: {', '.join(map(str, sorted(sizes)))} rows")
            elif sizes and (rows := sizes.pop()) != leaf.shape[0]:
                is_base = any(isinstance(update, Rebase) for update in updates)
                yield _Wanted(site, leaf, rows, _extra(updates, kind, leaf.shape, rows), is_base)
    if disagreeing:
        raise ShapeError(
            f"adapters were trained with different numbers of tokens or labels:"
            f"{listing(disagreeing)}\nMerge those of one size only."
        )


def _leaf(site: str, part: Part, layout: Layout, tensors: Mapping[str, Stored]) -> Stored | None:
    """A site's tensor, if it lies in one as PyTorch has it."""
    try:
        places = layout.places(site, part)
    except LayoutError:
        return None
    found = [place for place in places if place.leaf in tensors]
    is_plain = len(found) == 1 and found[0].index is None and found[0].axes is None
    return tensors[found[0].leaf] if is_plain else None


def _sizes(updates: list[Update], kind: str, shape: tuple[int, ...]) -> set[int]:
    """The numbers of rows that updates are for; the base's own where nothing else is said."""
    firm: set[int] = set()
    tokens = 0
    for update in updates:
        whole = _whole(update, kind)
        if whole is not None:
            if whole.shape[1:] == shape[1:]:
                firm.add(whole.shape[0])
        elif kind == "weight" and isinstance(update, Tokens) and len(update.rows):
            tokens = max(tokens, int(np.max(np.asarray(update.rows))) + 1)
        elif kind == "weight" and not isinstance(update, Replace | Rebase):
            firm |= _fitting(update, shape)
    return firm or ({tokens} if tokens > shape[0] else set())


def _fitting(update: Update, shape: tuple[int, ...]) -> set[int]:
    """The number of rows for which an update is made, if it can be told from its factors."""
    width = int(np.prod(shape[1:], dtype=int))
    if update.misfit((shape[0], width)) is None:
        return {shape[0]} if update.misfit((shape[0] + 1, width)) else set()
    sizes = {size for leaf in jax.tree.leaves(update) for size in np.shape(leaf)}
    return {size for size in sizes if update.misfit((size, width)) is None}


def _whole(update: Update, kind: str) -> Any:
    """The weight or bias that an update brings as a whole; None if it does not."""
    return getattr(update, kind, None) if isinstance(update, Replace | Rebase) else None


def _extra(
    updates: list[Update], kind: str, shape: tuple[int, ...], rows: int
) -> np.ndarray | None:
    """The rows that the base lacks, each from the first adapter that has it; None if not all."""
    count = max(0, rows - shape[0])
    extra = np.zeros((count, *shape[1:]), np.float32)
    missing = np.ones(count, bool)
    for update in updates:
        whole = _whole(update, kind)
        if whole is not None and whole.shape == (rows, *shape[1:]):
            new = np.asarray(whole)[shape[0] :]
            extra = np.where(missing.reshape(-1, *[1] * (new.ndim - 1)), new, extra)
            missing[:] = False
        elif kind == "weight" and isinstance(update, Tokens):
            for row, value in zip(np.asarray(update.rows), np.asarray(update.values), strict=True):
                if shape[0] <= row < rows and missing[row - shape[0]]:
                    extra[row - shape[0]], missing[row - shape[0]] = value, False
    return None if missing.any() else extra
