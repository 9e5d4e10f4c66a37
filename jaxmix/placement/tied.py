"""Tied embeddings: one leaf that is both an embedding and the head of a language model.

PEFT's forward changes only the side that is looked up, its merge changes both. With one leaf for
both, no tree of weights computes PEFT's forward, so such a tree has to be untied first. A tree does
not say that it is tied: it only lacks a head. The leaves' names tell whether there should be one.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from jaxmix.families import LoRA, Replace, Update, parts_of
from jaxmix.placement.layout import Layout
from jaxmix.placement.names import bare

__all__ = [
    "EMBEDDINGS",
    "HEADS",
    "bias_alone",
    "tied_problem",
    "tied_sites",
    "trained_as_one",
    "without_copies",
]

# Where Hugging Face's models keep an embedding, and the head that may be tied to it; held against
# the names of the files that transformers saves by tests/placement/test_tied.py.
EMBEDDINGS = (
    *("embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings", "shared"),
    *("embeddings", "word_embedding", "tokens_embed"),
)
HEADS = (
    *("lm_head", "embed_out", "output", "output_layer", "proj_out", "lm_loss", "vocab_projector"),
    *("cls.predictions.decoder", "lm_head.decoder", "predictions.decoder", "generator_lm_head"),
)
# What is left of a tied head in a file: its bias, or the layers before it. By these, the head.
_LEFT = {
    "cls.predictions.": "cls.predictions.decoder",
    "predictions.": "predictions.decoder",
    "lm_head.": "lm_head.decoder",
    "vocab_projector.": "vocab_projector",
    "vocab_transform.": "vocab_projector",
    "generator_lm_head.": "generator_lm_head",
    "generator_predictions.": "generator_lm_head",
    "lm_loss.": "lm_loss",
    "final_logits_bias": "lm_head",
}
# First names that are no wrapper around a model, but parts of it.
_PARTS = ("encoder", "decoder", "embeddings")


def tied_problem(site: str, names: Collection[str]) -> str | None:
    """Whether a site's weight is also the head of the model, or the other way around.

    Args:
        site: the PyTorch name of a module whose weight is to change.
        names: the dotted names of all leaves of the tree.

    Returns:
        What is wrong and how to untie, in words; None if nothing is.

    Example:
        >>> print(tied_problem("model.embed_tokens", ["model.embed_tokens.weight"]))
        model.embed_tokens is the embedding and, since the tree has no lm_head, the head too ...
        >>> tied_problem("model.embed_tokens", ["model.embed_tokens.weight", "lm_head.weight"])
    """
    site = bare(site)
    if _last(site) not in EMBEDDINGS and site not in HEADS:
        return None
    names = [bare(name.removeprefix("params.")) for name in names]
    weights: dict[str, str] = {}
    for name in names:
        module, _, kind = name.rpartition(".")
        if kind in ("weight", "kernel", "embedding"):
            weights[module] = kind
    if site in weights:
        if _last(site) not in EMBEDDINGS or (head := _missing_head(site, weights, names)) is None:
            return None
        return (
            f"{site} is the embedding and, since the tree has no {head}, the head too (tied). "
            f"{_how_to_untie(head, site, weights[site])} If the model has no head at all, say "
            "layout=jaxmix.Layout('headless', jaxmix.layout.NAMES.rules)"
        )
    embedding = next((module for module in weights if _last(module) in EMBEDDINGS), None)
    if embedding is None:
        return None
    shares = _last(site) == "embed_tokens" and _last(embedding) == "shared"
    if shares or (site in HEADS and site == _missing_head(embedding, weights, names)):
        how = _how_to_untie(site, embedding, weights[embedding])
        return f"{site} is tied to {embedding}. {how}"
    return None


def tied_sites(where: Collection[str], words: Mapping[str, Any], table: Layout) -> Iterator[str]:
    """The sites whose weight is tied, each with what to do.

    With a layout of names the names tell; another says it where it has the head in the same leaf,
    or knows a leaf for the head that the tree lacks.

    Args:
        where: the dotted names of all leaves of the tree.
        words: ``{site: ((strength, update), …)}``.
        table: where sites lie.

    Yields:
        A line for each.
    """
    heads: dict[str, str] = {}
    missing: list[str] = []
    for head in () if table.by_name else HEADS:
        places = table.places(head, "weight")
        heads.update({place.leaf: head for place in places if place.leaf in where})
        # A rule for whatever name says nothing of a head.
        is_known = len(places) > len(table.places("-", "weight"))
        if is_known and not any(place.leaf in where for place in places):
            missing.append(head)
    for site, word in words.items():
        if not any(update.has_weight and not update.keeps_tie for _, update in word):
            continue
        if table.by_name:
            if problem := tied_problem(site, where):
                yield problem
            continue
        for place in table.places(site, "weight"):
            head = heads.get(place.leaf, site)
            if head != site:
                yield (
                    f"{site}: the layout {table.name!r} has {head} in the same leaf {place.leaf}. "
                    "PEFT's forward changes one side only: give the head a leaf and a rule of its "
                    "own, or none"
                )
            elif missing and not heads and _last(site) in EMBEDDINGS and place.leaf in where:
                yield (
                    f"{site}: the layout {table.name!r} has a leaf for {missing[0]}, but the tree "
                    "has none, so that the embedding is the head too (tied). PEFT's forward "
                    "changes one side only: give the head a leaf of its own; or, where the model "
                    "has no head at all, give a jaxmix.Layout without a rule for one"
                )


def trained_as_one(
    words: Mapping[str, Any], names: Collection[str]
) -> tuple[frozenset[str], frozenset[str]]:
    """Finds an embedding and its tied head that adapters change in the same way.

    PEFT's ``ensure_weight_tying`` trains both as one and saves both. Then nothing comes apart: the
    one leaf that they share takes the update once.

    Args:
        words: ``{site: ((strength, update), …)}``.
        names: The dotted names of all leaves of the tree.

    Returns:
        The sites that were trained as one, and those of them that have no leaf of their own. Both
        are empty where the updates differ, or where their numbers are traced.
    """
    weights = {name.removeprefix("params.").rpartition(".")[0] for name in names}
    sites = [
        site
        for site, word in words.items()
        if (site in HEADS or _last(site) in EMBEDDINGS)
        and any(update.has_weight and not update.keeps_tie for _, update in word)
        and tied_problem(site, names)
    ]
    copies = frozenset(site for site in sites if site not in weights)
    if len(sites) in (0, len(copies)) or not copies:
        return frozenset(), frozenset()
    first, *rest = (words[site] for site in sites)
    if not all(_is_same_word(first, word) for word in rest):
        return frozenset(), frozenset()
    for shared in (site for site in sites if _last(site) == "shared"):
        outer = shared.removesuffix("shared")
        for stack in (f"{outer}encoder.", f"{outer}decoder."):
            has_stack = any(module.startswith(stack) for module in weights)
            if has_stack and f"{stack}embed_tokens" not in sites:
                return frozenset(), frozenset()
    return frozenset(sites), copies


def bias_alone(
    site: str, update: Update, names: Collection[str]
) -> tuple[str, Update] | tuple[None, None]:
    """What is left of a head's update where the embedding's leaf takes what it does to the weight.

    Args:
        site: The head.
        update: What was to be done there.
        names: The dotted names of all leaves of the tree.

    Returns:
        The site that has the bias (BERT keeps it one module above the tied decoder), and the update
        of the bias; None for both if there is none.
    """
    parts = [part for part in parts_of(update) if isinstance(part, Replace) and part.has_bias]
    if not parts:
        return None, None
    above = site.rpartition(".")[0]
    is_above = any(name.removeprefix("params.") == f"{above}.bias" for name in names)
    return above if is_above else site, replace(parts[-1], weight=None)


def without_copies(
    words: Mapping[str, Any], copies: Collection[str], names: Collection[str]
) -> dict[str, Any]:
    """The words without those at sites whose weight is another's leaf, but for the biases there."""
    out = {site: word for site, word in words.items() if site not in copies}
    for site in copies:
        for strength, update in words[site]:
            owner, bias = bias_alone(site, update, names)
            if owner is not None and bias is not None:
                out[owner] = (*out.get(owner, ()), (strength, bias))
    return out


def _is_same_word(one: Any, other: Any) -> bool:
    """Whether two words of updates do the same to one weight."""
    return len(one) == len(other) and all(
        _is_equal(s, t) and _is_same_update(u, v) for (s, u), (t, v) in zip(one, other, strict=True)
    )


def _is_same_update(one: Update, other: Update) -> bool:
    """Whether two updates do the same to one weight, of an embedding here and of a head there."""
    ours, theirs = (
        tuple(_as_linear(part) for part in parts_of(update) if part.has_weight)
        for update in (one, other)
    )
    leaves, structure = jax.tree.flatten(ours)
    others, other_structure = jax.tree.flatten(theirs)
    return structure == other_structure and all(map(_is_equal, leaves, others))


def _as_linear(update: Update) -> Update:
    """What an update does to the weight alone: an embedding's LoRA is a linear layer's there."""
    if isinstance(update, Replace):
        return replace(update, bias=None)
    if isinstance(update, LoRA) and update.embedding and update.magnitude is None:
        return replace(update, embedding=False)
    return update


def _is_equal(one: Any, other: Any) -> bool:
    """Whether two leaves are equal; of traced ones that is known only if they are one object."""
    if one is other:
        return True
    if isinstance(one, Tracer) or isinstance(other, Tracer):
        return False
    return np.shape(one) == np.shape(other) and bool(np.array_equal(one, other))


def _last(module: str) -> str:
    return module.rpartition(".")[2]


def _how_to_untie(missing: str, embedding: str, kind: str) -> str:
    """What to do where the module ``missing`` has no leaf of its own."""
    here, there = kind, f"{embedding}.{kind}"
    if kind == "embedding" and missing in HEADS:
        here, there = "kernel", f"{there} transposed"
    return (
        "The tree has one leaf for both, and PEFT's forward changes one side only. Untie it: add a "
        f"leaf {missing}.{here}, a copy of {there}, and run the model with "
        "tie_word_embeddings=False (a jaxmix.models.Decoder: model.untied())."
    )


def _missing_head(embedding: str, weights: Mapping[str, str], names: Collection[str]) -> str | None:
    """The head that a language model with this embedding lacks; None if it has one, or is none."""
    if any(head in weights for head in HEADS):
        return None
    for left, head in _LEFT.items():
        if any(name.startswith(left) for name in names):
            return head
    return _head_by_prefix(embedding, names)


def _head_by_prefix(embedding: str, names: Collection[str]) -> str | None:
    """The head of a decoder whose file holds nothing of it.

    Everything else lies below one prefix then (``model.``, ``transformer.``). Without a prefix the
    model has no head, and with other leaves beside the prefix (``score``) it has another one. An
    encoder (``….embeddings.word_embeddings``) would have left its head's bias.
    """
    outer, _, inner = embedding.partition(".")
    if embedding == "shared":  # T5 has no prefix; its encoder alone has no head
        return "lm_head" if any(name.startswith("decoder.block.") for name in names) else None
    if not inner or outer in _PARTS or embedding.endswith("embeddings.word_embeddings"):
        return None
    if not all(name.startswith(f"{outer}.") for name in names):
        return None
    is_whisper = any(name.startswith(f"{outer}.encoder.conv1.") for name in names)
    return "proj_out" if is_whisper else "lm_head"
