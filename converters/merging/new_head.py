"""Heads that an adapter brings and the base has not: a classifier on a language model.

Which class of transformers a head belongs to is looked up by the base's model type and by the
names of the saved leaves, in a table that ``python -m tests.heads`` writes from transformers. The
output is that class's checkpoint: its body's prefix, the head as new tensors, no other head.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from jaxmix.adapter import words
from jaxmix.converters.adapters.peft.about import about
from jaxmix.converters.checkpoints.huggingface import CONFIG_FILE, FLOATS, Checkpoint, Shard, Stored
from jaxmix.converters.merging.grown import new
from jaxmix.converters.merging.head_classes import HeadClass, head_classes
from jaxmix.converters.merging.labels import label_fields
from jaxmix.converters.merging.rewriting import total, with_config, with_tensors
from jaxmix.errors import LayoutError, ShapeError, listing, option
from jaxmix.families import Replace, parts_of
from jaxmix.mixing import Mix
from jaxmix.placement.ties import HEADS

__all__ = ["NewHead", "with_new_head"]

# How heads are called in models that the table does not have.
_USUAL = ("score", "classifier", "qa_outputs", "classification_head")
# Old heads in a checkpoint without a prefix, by their first name.
_OLD = frozenset({"cls", "cls_predictions", *(head.partition(".")[0] for head in HEADS)})
# Prefixes of a language model's body, where the class with the head has another.
_BODIES = {"model.", "transformer."}
_LABELS, _QUESTIONS = "labels", "QUESTION_ANS"


@dataclass(frozen=True)
class NewHead:
    """What became of a base that was given a head.

    Args:
        name: The class whose checkpoint it is now; None if nothing was to do.
        dropped: The base's tensors that this class has not, each with the reason.
    """

    name: str | None = None
    dropped: tuple[str, ...] = field(default=())


def with_new_head(
    checkpoint: Checkpoint, mixed: Mix, *, allowed: bool | str
) -> tuple[Checkpoint, NewHead]:
    """Gives the base the head that the adapters bring, if it has none such.

    Args:
        checkpoint: The base.
        mixed: The adapters.
        allowed: Whether to do so; if not, adapters with such a head are an error. The name of the
            class, where the head's leaves do not tell it.

    Returns:
        The checkpoint, and what was done.

    Raises:
        LayoutError: If this is not allowed, the class is unknown, or parts of it are missing.
        ShapeError: If adapters bring heads of different sizes.
    """
    config = checkpoint.json(CONFIG_FILE)
    classes = head_classes(config.get("model_type"))
    is_other = _is_other_task(config, mixed, classes)
    leaves = _saved_leaves(checkpoint, mixed, classes, is_other=is_other)
    if not leaves:
        return checkpoint, NewHead()
    found = _chosen(checkpoint, mixed, leaves, classes, allowed)
    tensors, dropped = _renamed(checkpoint, mixed, found, leaves)
    there = {one.name for one in tensors.values()} | leaves.keys()
    if lost := [name for name in found.parameters if name not in there]:
        raise LayoutError(
            f"a {found.name} has tensors that neither {checkpoint.name} nor an adapter has:"
            f"{listing(lost)}\nThey were random when the adapter was trained, and were not saved: "
            "train it with these modules in modules_to_save, or merge into the very base that it "
            "was trained on, saved by transformers."
        )
    fields: dict[str, Any] = {"architectures": [found.name]}
    labels = {len(leaves[n]) for n, rows in found.head.items() if rows == _LABELS and n in leaves}
    if labels and (found.task != _QUESTIONS or "id2label" in config):
        fields |= label_fields(config, max(labels))
    out = _with(checkpoint, tensors, leaves)
    out = out if out.is_file else with_config(out, fields)
    reason = f"{found.name} has no such tensor"
    reasons = {name: "replaced by the new head" if name in leaves else reason for name in dropped}
    return out, NewHead(found.name, tuple(f"{name}: {why}" for name, why in reasons.items()))


def _is_of(name: str, site: str) -> bool:
    """Whether a parameter is one of a module."""
    return name.rpartition(".")[0] == site


def _is_other_task(config: Mapping[str, Any], mixed: Mix, classes: Sequence[HeadClass]) -> bool:
    """Whether the base has a head of another task than the adapters', though of the same name."""
    said = set(_said(mixed)).intersection(x for one in classes for x in (one.name, one.task))
    own = [one for one in classes if one.name in _architectures(config)]
    return bool(own and said) and not any({one.name, one.task} & said for one in own)


def _architectures(config: Mapping[str, Any]) -> list[str]:
    """The names of the base's classes."""
    named = config.get("architectures")
    return [name for name in named if isinstance(name, str)] if isinstance(named, list) else []


def _saved_leaves(
    checkpoint: Checkpoint, mixed: Mix, classes: Sequence[HeadClass], *, is_other: bool
) -> dict[str, np.ndarray]:
    """The leaves of heads that adapters saved and the base lacks; the first adapter's."""
    known = {name for one in classes for name in one.parameters}
    tensors, found, wrong = checkpoint.tensors, {}, []
    for site, word in words(mixed.parts).items():
        is_known = any(_is_of(name, site) for name in known) or site.split(".")[0] in _USUAL
        is_there = any(f"{site}.{kind}" in tensors for kind in ("weight", "bias"))
        if not is_known or (is_there and not is_other):
            continue
        for _, update in word:
            for part in parts_of(update):
                if not isinstance(part, Replace):
                    continue
                for kind in ("weight", "bias"):
                    leaf = getattr(part, kind)
                    name = f"{site}.{kind}"
                    if leaf is not None and found.setdefault(name, leaf).shape != leaf.shape:
                        wrong.append(f"{name}: {found[name].shape} and {leaf.shape}")
    if wrong:
        raise ShapeError(
            f"adapters bring heads of different sizes:{listing(wrong)}\nMerge one of them only."
        )
    return {name: np.asarray(leaf) for name, leaf in found.items()}


def _chosen(
    checkpoint: Checkpoint,
    mixed: Mix,
    leaves: Mapping[str, np.ndarray],
    classes: Sequence[HeadClass],
    allowed: bool | str,
) -> HeadClass:
    """The class that has the saved head.

    Raises:
        LayoutError: If the option is not set, no class fits, or several do.
    """
    fitting = [one for one in classes if one.fits(leaves)]
    said = set(_said(mixed))
    told = [one for one in fitting if one.name == allowed or {one.name, one.task} & said]
    candidates = told or fitting
    names = " or ".join(one.name for one in candidates)
    config = checkpoint.json(CONFIG_FILE)
    has = ", ".join(_architectures(config)) or config.get("model_type") or "no class"
    found = (
        f"the adapters bring a head that {checkpoint.name} has not ({CONFIG_FILE} says {has}):"
        f"{listing(f'{name} {leaf.shape}' for name, leaf in leaves.items())}\n"
    )
    if isinstance(allowed, str) and [one.name for one in candidates] != [allowed]:
        raise LayoutError(f"{found}A {allowed} has no such head, expected {names or 'another'}.")
    if not candidates:
        raise LayoutError(
            f"{found}No class of transformers that jaxmix knows has it on this model. Save the "
            "base with the class that the adapter was trained with, and merge into that."
        )
    if not allowed:
        raise LayoutError(
            f"{found}It is that of a {names}. {option('new_head')} "
            f"writes it as new tensors, and the class and its labels into {CONFIG_FILE}. Or save "
            f"such a base with transformers, and merge into that: {candidates[0].name}"
            ".from_pretrained(base).save_pretrained(folder)."
        )
    if len(candidates) > 1:
        raise LayoutError(
            f"{found}It may be that of a {names}. Say which: new_head={candidates[0].name!r} (on "
            f"the command line --head-class {candidates[0].name})."
        )
    return candidates[0]


def _said(mixed: Mix) -> Iterator[str]:
    """Tasks and classes for which adapters were trained, as their files say."""
    for part in mixed.parts:
        fields = about(getattr(part, "metadata", {}))
        yield fields.get("task_type", "")
        yield fields.get("auto_mapping", {}).get("base_model_class", "")


def _renamed(
    checkpoint: Checkpoint, mixed: Mix, found: HeadClass, leaves: Mapping[str, np.ndarray]
) -> tuple[dict[str, Stored], list[str]]:
    """The base's tensors under the class's names, by their old names; and those that go."""
    prefix = f"{found.prefix}."
    old = _old_prefix(checkpoint, mixed, prefix)
    kept, dropped = {}, []
    for name, tensor in checkpoint.tensors.items():
        inner = name.removeprefix(old) if name.startswith(old) else None
        is_old_head = inner is not None and not old and name.partition(".")[0] in _OLD
        if name in found.head and name not in leaves:
            kept[name] = tensor
        elif name in leaves or inner is None or is_old_head or inner in found.lacks:
            dropped.append(name)
        else:
            kept[name] = replace(tensor, name=f"{prefix}{inner}")
    return kept, dropped


def _old_prefix(checkpoint: Checkpoint, mixed: Mix, prefix: str) -> str:
    """The prefix of the base's body, such as ``"model."``; "" for none.

    Where an adapter touches the body, its sites tell: they are named as the class has them.
    """
    tensors = checkpoint.tensors
    firsts = {f"{name.partition('.')[0]}." for name in tensors}
    for site in words(mixed.parts):
        if not site.startswith(prefix):
            continue
        inner = f"{site.removeprefix(prefix)}.weight"
        hits = [old for old in (prefix, "", *sorted(firsts)) if f"{old}{inner}" in tensors]
        if hits:
            return hits[0]
    if prefix in firsts:
        return prefix
    bodies = {first for first in firsts if first[:-1] not in _OLD}
    return bodies.pop() if len(bodies) == 1 and bodies <= _BODIES else ""


def _with(
    checkpoint: Checkpoint, tensors: Mapping[str, Stored], leaves: Mapping[str, np.ndarray]
) -> Checkpoint:
    """The checkpoint with these tensors, and the head's in its last shard."""
    names = {np.dtype(kind): name for name, kind in FLOATS.items()}
    last = checkpoint.shards[-1]
    heads = [
        new(name, names[leaf.dtype], leaf, checkpoint.folder / last.name)
        for name, leaf in leaves.items()
    ]

    def change(shard: Shard) -> Iterator[Stored]:
        kept = [tensors[one.name] for one in shard.tensors if one.name in tensors]
        # Wide dtypes first, as safetensors has them, so that each tensor is aligned.
        more = heads if shard is last else []
        return iter(sorted([*kept, *more], key=_width, reverse=True))

    gone = [one for name, one in checkpoint.tensors.items() if name not in tensors]
    return with_tensors(checkpoint, change, total(heads, without=gone))


def _width(tensor: Stored) -> int:
    """The bytes of one of a tensor's numbers."""
    return tensor.size // max(1, int(np.prod(tensor.shape, dtype=int)))
