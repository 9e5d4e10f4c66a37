"""Adds heads that adapters have and the base lacks, such as a classifier on a language model.

The transformers class of a head is found by the base's model type and the names of the saved
leaves, in a table that ``python -m tests.heads`` generates from transformers. The output is a
checkpoint of that class, with its prefix for the body, the new head, and no other head.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from jaxmix.adapter import chains_by_site
from jaxmix.converters.adapters.peft.about import about
from jaxmix.converters.checkpoints.huggingface import CONFIG_FILE, FLOATS, Checkpoint, Shard, Stored
from jaxmix.converters.merging.head_classes import HeadClass, head_classes
from jaxmix.converters.merging.label_config import label_fields
from jaxmix.converters.merging.resized_tensor import new_tensor
from jaxmix.converters.merging.rewriting import adjust_totals, with_config, with_tensors
from jaxmix.errors import LayoutError, ShapeError, listing, option
from jaxmix.families import Replace, parts_of
from jaxmix.mixing import Mix
from jaxmix.placement.ties import HEADS

__all__ = ["NewHead", "with_new_head"]

# Common names of heads, for models that are not in the table.
_USUAL_HEADS = ("score", "classifier", "qa_outputs", "classification_head")
# The first part of the names of old heads, in checkpoints without a prefix.
_OLD_HEADS = frozenset({"cls", "cls_predictions", *(head.partition(".")[0] for head in HEADS)})
# Prefixes of a language model's body that the class with the head may replace.
_BODIES = {"model.", "transformer."}
_LABELS, _QUESTIONS = "labels", "QUESTION_ANS"


@dataclass(frozen=True)
class NewHead:
    """The result of adding a head.

    Args:
        name: The class of the output; None if no head was added.
        left_out: The base's tensors that this class lacks, and the class's tensors that neither the
            base nor an adapter has, each with the reason.
    """

    name: str | None = None
    left_out: tuple[str, ...] = field(default=())


def with_new_head(
    checkpoint: Checkpoint, mixed: Mix, *, allowed: bool | str | None
) -> tuple[Checkpoint, NewHead]:
    """Adds the adapters' head to the base, if the base lacks it.

    Args:
        checkpoint: The base.
        mixed: The adapters.
        allowed: Whether to add a head; if False, adapters with a new head are an error. None to
            add it if exactly one class has it, even if other tensors of that class are absent. Or
            the class's name, where the head's leaves do not determine it.

    Returns:
        The checkpoint, and the head that was added.

    Raises:
        LayoutError: If a new head is not allowed, its class is unknown, or tensors are missing.
        ShapeError: If adapters have heads of different sizes.
    """
    config = checkpoint.json(CONFIG_FILE)
    classes = head_classes(config.get("model_type"))
    is_other = _is_other_task(config, mixed, classes)
    leaves = _saved_leaves(checkpoint, mixed, classes, is_other=is_other)
    if not leaves:
        return checkpoint, NewHead()
    chosen = _choose_class(checkpoint, mixed, leaves, classes, allowed)
    tensors, dropped = _renamed(checkpoint, mixed, chosen, leaves)
    available = {tensor.name for tensor in tensors.values()} | leaves.keys()
    missing = [name for name in chosen.parameters if name not in available]
    if missing and allowed is not None:
        raise LayoutError(
            f"a {chosen.name} has tensors that neither {checkpoint.name} nor an adapter has:"
            f"{listing(missing)}\nThey were initialized at random for training and not saved. "
            "Train the adapter with these modules in modules_to_save, or save the base that it was "
            "trained on with transformers, and merge into that."
        )
    fields: dict[str, Any] = {"architectures": [chosen.name]}
    labels = {
        len(leaves[name])
        for name, rows in chosen.head.items()
        if rows == _LABELS and name in leaves
    }
    if labels and (chosen.task != _QUESTIONS or "id2label" in config):
        fields |= label_fields(config, max(labels))
    out = _with_tensors(checkpoint, tensors, leaves)
    out = out if out.is_file else with_config(out, fields)
    unused = f"{chosen.name} has no such tensor"
    reasons = {name: "replaced by the new head" if name in leaves else unused for name in dropped}
    absent = "neither the base nor an adapter has it, so transformers initializes it at random"
    reasons |= dict.fromkeys(missing, absent)
    return out, NewHead(chosen.name, tuple(f"{name}: {reason}" for name, reason in reasons.items()))


def _belongs_to(name: str, site: str) -> bool:
    """Whether a parameter belongs to a module."""
    return name.rpartition(".")[0] == site


def _is_other_task(config: Mapping[str, Any], mixed: Mix, classes: Sequence[HeadClass]) -> bool:
    """Whether the base's head has the same name as the adapters', but is for another task."""
    stated = set(_stated(mixed)).intersection(x for c in classes for x in (c.name, c.task))
    base_heads = [head for head in classes if head.name in _architectures(config)]
    return bool(base_heads and stated) and not any(
        {head.name, head.task} & stated for head in base_heads
    )


def _architectures(config: Mapping[str, Any]) -> list[str]:
    """Returns the names of the base's classes."""
    named = config.get("architectures")
    return [name for name in named if isinstance(name, str)] if isinstance(named, list) else []


def _saved_leaves(
    checkpoint: Checkpoint, mixed: Mix, classes: Sequence[HeadClass], *, is_other: bool
) -> dict[str, np.ndarray]:
    """Returns the leaves of heads that the base lacks, each from the first adapter that has it."""
    known = {name for head in classes for name in head.parameters}
    tensors, leaves, wrong = checkpoint.tensors, {}, []
    for site, chain in chains_by_site(mixed.parts).items():
        is_known = (
            any(_belongs_to(name, site) for name in known) or site.split(".")[0] in _USUAL_HEADS
        )
        is_in_base = any(f"{site}.{kind}" in tensors for kind in ("weight", "bias"))
        if not is_known or (is_in_base and not is_other):
            continue
        for _, update in chain:
            for part in parts_of(update):
                if not isinstance(part, Replace):
                    continue
                for kind in ("weight", "bias"):
                    leaf = getattr(part, kind)
                    name = f"{site}.{kind}"
                    if leaf is not None and leaves.setdefault(name, leaf).shape != leaf.shape:
                        wrong.append(f"{name}: {leaves[name].shape} and {leaf.shape}")
    if wrong:
        raise ShapeError(
            f"adapters have heads of different sizes:{listing(wrong)}\nMerge only one of them."
        )
    return {name: np.asarray(leaf) for name, leaf in leaves.items()}


def _choose_class(
    checkpoint: Checkpoint,
    mixed: Mix,
    leaves: Mapping[str, np.ndarray],
    classes: Sequence[HeadClass],
    allowed: bool | str | None,
) -> HeadClass:
    """Returns the class that has the saved head.

    Raises:
        LayoutError: If a new head is not allowed, or if no class or several classes fit; by
            default, also if the only class that fits is for another task than the adapters'.
    """
    fitting = [head for head in classes if head.fits(leaves)]
    stated = set(_stated(mixed))
    matching = [head for head in fitting if head.name == allowed or {head.name, head.task} & stated]
    candidates = matching or fitting
    names = " or ".join(head.name for head in candidates)
    config = checkpoint.json(CONFIG_FILE)
    base_class = ", ".join(_architectures(config)) or config.get("model_type") or "no class"
    mismatch = (
        f"the adapters have a head that {checkpoint.name} lacks ({CONFIG_FILE} names {base_class}):"
        f"{listing(f'{name} {leaf.shape}' for name, leaf in leaves.items())}\n"
    )
    if isinstance(allowed, str) and [head.name for head in candidates] != [allowed]:
        raise LayoutError(
            f"{mismatch}{allowed} has no such head, expected {names or 'another class'}."
        )
    if not candidates:
        raise LayoutError(
            f"{mismatch}jaxmix knows no transformers class of this model with such a head. Save "
            "the base with the class that the adapter was trained with, and merge into that."
        )
    is_other_task = not matching and any(head.task in stated for head in classes)
    if allowed is False or (allowed is None and len(candidates) == 1 and is_other_task):
        raise LayoutError(
            f"{mismatch}It is the head of {names}. Use {option('new_head')} to write it as new "
            f"tensors, and the class and its labels to {CONFIG_FILE}. Or save such a base with "
            f"transformers, and merge into that: {candidates[0].name}"
            ".from_pretrained(base).save_pretrained(folder)."
        )
    if len(candidates) > 1:
        raise LayoutError(
            f"{mismatch}It may be the head of {names}. Choose one: "
            f"{option('new_head', candidates[0].name)}."
        )
    return candidates[0]


def _stated(mixed: Mix) -> Iterator[str]:
    """Yields the tasks and classes that the adapters' files state."""
    for part in mixed.parts:
        fields = about(getattr(part, "metadata", {}))
        yield fields.get("task_type", "")
        yield fields.get("auto_mapping", {}).get("base_model_class", "")


def _renamed(
    checkpoint: Checkpoint, mixed: Mix, chosen: HeadClass, leaves: Mapping[str, np.ndarray]
) -> tuple[dict[str, Stored], list[str]]:
    """Returns ``{old name: renamed tensor}``, and the names of the base's tensors to drop."""
    prefix = f"{chosen.prefix}."
    old_prefix = _old_prefix(checkpoint, mixed, prefix)
    kept, dropped = {}, []
    for name, tensor in checkpoint.tensors.items():
        inner = name.removeprefix(old_prefix) if name.startswith(old_prefix) else None
        is_old_head = inner is not None and not old_prefix and name.partition(".")[0] in _OLD_HEADS
        if name in chosen.head and name not in leaves:
            kept[name] = tensor
        elif name in leaves or inner is None or is_old_head or inner in chosen.lacks:
            dropped.append(name)
        else:
            kept[name] = replace(tensor, name=f"{prefix}{inner}")
    return kept, dropped


def _old_prefix(checkpoint: Checkpoint, mixed: Mix, prefix: str) -> str:
    """Returns the prefix of the base's body, such as ``"model."``; "" if it has none.

    If an adapter touches the body, its sites, which have the class's names, determine the prefix.
    """
    tensors = checkpoint.tensors
    firsts = {f"{name.partition('.')[0]}." for name in tensors}
    for site in chains_by_site(mixed.parts):
        if not site.startswith(prefix):
            continue
        inner = f"{site.removeprefix(prefix)}.weight"
        hits = [old for old in (prefix, "", *sorted(firsts)) if f"{old}{inner}" in tensors]
        if hits:
            return hits[0]
    if prefix in firsts:
        return prefix
    bodies = {first for first in firsts if first[:-1] not in _OLD_HEADS}
    return bodies.pop() if len(bodies) == 1 and bodies <= _BODIES else ""


def _with_tensors(
    checkpoint: Checkpoint, tensors: Mapping[str, Stored], leaves: Mapping[str, np.ndarray]
) -> Checkpoint:
    """Returns the checkpoint with these tensors, and the head's leaves in its last shard."""
    names = {np.dtype(kind): name for name, kind in FLOATS.items()}
    last = checkpoint.shards[-1]
    heads = [
        new_tensor(name, names[leaf.dtype], leaf, checkpoint.folder / last.name)
        for name, leaf in leaves.items()
    ]

    def change(shard: Shard) -> Iterator[Stored]:
        kept = [tensors[old.name] for old in shard.tensors if old.name in tensors]
        # Wide dtypes first, as safetensors sorts them, so each tensor is aligned.
        more = heads if shard is last else []
        return iter(sorted([*kept, *more], key=_item_size, reverse=True))

    removed = [old for name, old in checkpoint.tensors.items() if name not in tensors]
    return with_tensors(checkpoint, change, adjust_totals(heads, removed))


def _item_size(tensor: Stored) -> int:
    """Returns the bytes of each number of a tensor."""
    return tensor.size // max(1, int(np.prod(tensor.shape, dtype=int)))
