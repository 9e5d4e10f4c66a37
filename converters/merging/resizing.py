"""Resizes embeddings and heads for which an adapter has more or fewer rows than the base.

After ``resize_token_embeddings`` PEFT saves the whole embedding and head. The base's rows are kept,
missing rows are taken from the first adapter that saved them, and the adapters are applied to the
result: at strength 1 it equals the saved tensor, as in PEFT.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxmix.adapter import chains_by_site
from jaxmix.converters.checkpoints.huggingface import CONFIG_FILE, FLOATS, Checkpoint, Shard, Stored
from jaxmix.converters.merging.label_config import label_fields
from jaxmix.converters.merging.resized_tensor import ResizedTensor, new_tensor, resize_tensor
from jaxmix.converters.merging.rewriting import adjust_totals, with_config, with_tensors
from jaxmix.errors import LayoutError, ShapeError, listing, option
from jaxmix.families import Rebase, Replace, Tokens, Update, parts_of
from jaxmix.mixing import Mix
from jaxmix.placement.layout import Layout, Part
from jaxmix.placement.ties import EMBEDDINGS, HEADS

__all__ = ["resized"]

# Biases of heads, which have a number for each token.
_BIASES = (*(f"{head}.bias" for head in HEADS), "cls.predictions.bias", "final_logits_bias")
_SIZES = ("vocab_size", "n_words")
_OTHER_MODELS = ("vision_config", "audio_config", "qformer_config")


@dataclass(frozen=True)
class _Resize:
    """A tensor whose number of rows differs from the adapters'.

    Args:
        site: The site of the tensor.
        tensor: The base's tensor.
        rows: The adapters' number of rows.
        extra: The rows that the base lacks; None if the adapters do not have all of them.
        is_base: Whether these rows belong to the resized base, so that a tied head has them too.
    """

    site: str
    tensor: Stored
    rows: int
    extra: np.ndarray | None
    is_base: bool

    @property
    def text(self) -> str:
        """Describes the mismatch."""
        name, shape = self.tensor.name, self.tensor.shape
        fitted = (self.rows, *shape[1:])
        return f"{self.site}: the adapter fits shape {fitted}, {name} has shape {shape}"


def resized(
    checkpoint: Checkpoint,
    mixed: Mix,
    layout: Layout,
    *,
    allowed: bool,
    labels: bool = False,
    untied: Collection[str] = (),
) -> tuple[Checkpoint, dict[str, tuple[int, int]]]:
    """Gives embeddings and heads the adapters' number of rows.

    Args:
        checkpoint: The base.
        mixed: The adapters.
        layout: Where their sites are.
        allowed: Whether to resize; if not, an adapter that requires it is an error.
        labels: Whether to resize classification heads even if ``allowed`` is False.
        untied: The untied tensors, copies of the base's embedding.

    Returns:
        The checkpoint, and ``{tensor: (rows before, rows after)}``.

    Raises:
        ShapeError: If resizing is not allowed, adapters disagree, or rows are missing.
    """
    resizes = {resize.tensor.name: resize for resize in _resizes(checkpoint, mixed, layout)}
    if not resizes:
        return checkpoint, {}
    if not allowed and not (labels and not any(map(_is_vocabulary, _sites(resizes)))):
        raise ShapeError(
            f"{checkpoint.name} has another number of tokens or labels than the adapters:"
            f"{listing(resize.text for resize in resizes.values())}\nIf they were trained on this "
            f"model after resizing, use {option('resize')} to give these tensors the adapters' "
            f"rows, and update {CONFIG_FILE}."
        )
    changed = {n: _resized(resize) for n, resize in resizes.items() if resize.extra is not None}
    missing = [resize.text for resize in resizes.values() if resize.extra is None]
    vocabulary = {
        (resize.tensor.shape[0], resize.rows)
        for resize in resizes.values()
        if _is_vocabulary(resize.site)
    }
    for before, after in vocabulary:
        missing += _add_partners(checkpoint, before, after, changed, resizes, untied)
    if missing or len(vocabulary) > 1:
        raise ShapeError(
            f"{checkpoint.name} can't be resized, since no adapter has the missing rows:"
            f"{listing(missing or sorted(resize.text for resize in resizes.values()))}\nSave the "
            "adapter with its embeddings (save_embedding_layers=True in PEFT's save_pretrained), "
            "or merge into the resized base that it was trained on, saved with transformers."
        )
    changes = {name: (checkpoint.tensors[name].shape, new.shape) for name, new in changed.items()}
    out = _with_tensors(checkpoint, changed)
    fields = _fields(out, vocabulary, {resize.rows for resize in resizes.values()})
    if fields and not out.is_file:
        out = with_config(out, fields)
    return out, {name: (_rows(old), _rows(new)) for name, (old, new) in changes.items()}


def _sites(resizes: Mapping[str, _Resize]) -> list[str]:
    return [resize.site for resize in resizes.values()]


def _rows(shape: tuple[int, ...]) -> int:
    """Returns the number of tokens; ``final_logits_bias`` has shape (1, V)."""
    return shape[-1] if shape[0] == 1 else shape[0]


def _resized(resize: _Resize) -> ResizedTensor:
    assert resize.extra is not None
    return resize_tensor(resize.tensor, resize.rows, resize.extra)


def _with_tensors(checkpoint: Checkpoint, changed: Mapping[str, ResizedTensor]) -> Checkpoint:
    """Returns the checkpoint with these tensors in place of its own."""

    def change(shard: Shard) -> Iterator[Stored]:
        return (changed.get(tensor.name, tensor) for tensor in shard.tensors)

    before = [checkpoint.tensors[name] for name in changed]
    return with_tensors(checkpoint, change, adjust_totals(changed.values(), before))


def _fields(
    checkpoint: Checkpoint, vocabulary: set[tuple[int, int]], rows: set[int]
) -> dict[str, Any]:
    """Returns the new fields of config.json."""
    config = checkpoint.json(CONFIG_FILE)
    for before, after in vocabulary:
        return _with_vocabulary(config, before, after)
    return label_fields(config, rows.pop()) if len(rows) == 1 else {}


def _with_vocabulary(config: Mapping[str, Any], before: int, after: int) -> dict[str, Any]:
    """Returns the fields with the number of tokens, of the model or of its text model."""
    fields: dict[str, Any] = {name: after for name in _SIZES if config.get(name) == before}
    for name, part in config.items():
        if isinstance(part, dict) and name not in _OTHER_MODELS:
            inner = {key: after for key in _SIZES if part.get(key) == before}
            if inner:
                fields[name] = {**part, **inner}
    if fields:
        return fields
    text = config.get("text_config")
    if isinstance(text, dict):
        return {"text_config": {**text, "vocab_size": after}}
    return {"vocab_size": after}


def _is_vocabulary(site: str) -> bool:
    """Whether a site's tensor has a row for each token."""
    is_bias = f"{site}.bias".endswith(_BIASES)
    return is_bias or site.rpartition(".")[2] in EMBEDDINGS or site.endswith(HEADS)


def _add_partners(
    checkpoint: Checkpoint,
    before: int,
    after: int,
    changed: dict[str, ResizedTensor],
    resizes: Mapping[str, _Resize],
    untied: Collection[str],
) -> Iterator[str]:
    """Adds other tensors with a row per token to ``changed``; yields those it can't resize.

    Removed rows are cut from all of them. New elements of a bias are zero, as in transformers; new
    rows of a tied head are the embedding's.
    """
    is_tied = checkpoint.json(CONFIG_FILE).get("tie_word_embeddings") is True
    for name, tensor in checkpoint.tensors.items():
        if name in resizes or tensor.dtype not in FLOATS:
            continue
        module, _, kind = name.rpartition(".")
        if name.endswith(_BIASES) and tensor.shape in ((before,), (1, before)):
            array = np.zeros((*tensor.shape[:-1], after), FLOATS[tensor.dtype])
            count = min(before, after)
            array[..., :count] = tensor.read()[..., :count]
            changed[name] = new_tensor(name, tensor.dtype, array, tensor.file)
        elif kind == "weight" and _is_vocabulary(module) and tensor.shape[:1] == (before,):
            shape = (after, *tensor.shape[1:])
            twins = [
                new
                for twin, new in changed.items()
                if new.shape == shape
                and (is_tied or (name in untied and twin in resizes and resizes[twin].is_base))
            ]
            if after < before:
                changed[name] = resize_tensor(
                    tensor, after, np.zeros((0, *tensor.shape[1:]), np.float32)
                )
            elif twins:
                changed[name] = resize_tensor(tensor, after, twins[0].extra)
            else:
                yield f"{name} has {before} rows, {after} are needed, and no adapter saved it"


def _resizes(checkpoint: Checkpoint, mixed: Mix, layout: Layout) -> Iterator[_Resize]:
    """Yields the tensors outside of layers whose number of rows differs from the adapters'."""
    tensors, disagreeing = checkpoint.tensors, []
    for site, chain in chains_by_site(mixed.parts).items():
        if re.search(r"\.\d+\.", site):
            continue
        updates = [part for _, update in chain for part in parts_of(update)]
        for kind in ("weight", "bias"):
            leaf = _leaf(site, kind, layout, tensors)
            if leaf is None or leaf.dtype not in FLOATS or not leaf.shape:
                continue
            sizes = _sizes(updates, kind, leaf.shape)
            if len(sizes) > 1:
                disagreeing.append(f"{site}: {', '.join(map(str, sorted(sizes)))} rows")
            elif sizes and (rows := sizes.pop()) != leaf.shape[0]:
                is_base = any(isinstance(update, Rebase) for update in updates)
                yield _Resize(site, leaf, rows, _extra(updates, kind, leaf.shape, rows), is_base)
    if disagreeing:
        raise ShapeError(
            "adapters were trained with different numbers of tokens or labels:"
            f"{listing(disagreeing)}\nMerge only adapters of the same size."
        )


def _leaf(site: str, part: Part, layout: Layout, tensors: Mapping[str, Stored]) -> Stored | None:
    """Returns a site's tensor, if it is a whole tensor in PyTorch's orientation."""
    try:
        places = layout.places(site, part)
    except LayoutError:
        return None
    existing = [place for place in places if place.leaf in tensors]
    is_plain = len(existing) == 1 and existing[0].index is None and existing[0].axes is None
    return tensors[existing[0].leaf] if is_plain else None


def _sizes(updates: list[Update], kind: str, shape: tuple[int, ...]) -> set[int]:
    """Returns the numbers of rows that updates fit; trained tokens count only without others."""
    fixed: set[int] = set()
    tokens = 0
    for update in updates:
        saved = _saved(update, kind)
        if saved is not None:
            if saved.shape[1:] == shape[1:]:
                fixed.add(saved.shape[0])
        elif kind == "weight" and isinstance(update, Tokens) and len(update.rows):
            tokens = max(tokens, int(np.max(np.asarray(update.rows))) + 1)
        elif kind == "weight" and not isinstance(update, Replace | Rebase):
            fixed |= _fitting(update, shape)
    return fixed or ({tokens} if tokens > shape[0] else set())


def _fitting(update: Update, shape: tuple[int, ...]) -> set[int]:
    """Returns the number of rows that an update fits, if its factors determine it."""
    width = int(np.prod(shape[1:], dtype=int))
    if update.misfit((shape[0], width)) is None:
        return {shape[0]} if update.misfit((shape[0] + 1, width)) else set()
    sizes = {size for leaf in jax.tree.leaves(update) for size in np.shape(leaf)}
    return {size for size in sizes if update.misfit((size, width)) is None}


def _saved(update: Update, kind: str) -> Any:
    """Returns the weight or bias that an update saves completely; None for other updates."""
    return getattr(update, kind, None) if isinstance(update, Replace | Rebase) else None


def _extra(
    updates: list[Update], kind: str, shape: tuple[int, ...], rows: int
) -> np.ndarray | None:
    """Returns the missing rows, each from the first adapter that has it; None unless complete."""
    count = max(0, rows - shape[0])
    extra = np.zeros((count, *shape[1:]), np.float32)
    missing = np.ones(count, bool)
    for update in updates:
        saved = _saved(update, kind)
        if saved is not None and saved.shape == (rows, *shape[1:]):
            new = np.asarray(saved)[shape[0] :]
            extra = np.where(missing.reshape(-1, *[1] * (new.ndim - 1)), new, extra)
            missing[:] = False
        elif kind == "weight" and isinstance(update, Tokens):
            for row, value in zip(np.asarray(update.rows), np.asarray(update.values), strict=True):
                if shape[0] <= row < rows and missing[row - shape[0]]:
                    extra[row - shape[0]], missing[row - shape[0]] = value, False
    return None if missing.any() else extra
