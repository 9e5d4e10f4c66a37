"""Tied embeddings: one leaf that is both an embedding and the head of a language model.

PEFT's forward changes only the side that is looked up, its merge changes both. With one leaf for
both, no tree of weights computes PEFT's forward, so such a tree has to be untied first. A tree does
not say that it is tied: it only lacks a head. The leaves' names tell whether there should be one.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from jaxmix.layout import Layout
from jaxmix.names import bare

__all__ = ["HEADS", "tied_problem", "tied_sites"]

# Where Hugging Face's models keep an embedding, and the head that may be tied to it; held against
# the names of the files that transformers saves by tests/test_tied.py.
_EMBEDDINGS = (
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
    if _last(site) not in _EMBEDDINGS and site not in HEADS:
        return None
    names = [bare(name.removeprefix("params.")) for name in names]
    weights: dict[str, str] = {}
    for name in names:
        module, _, kind = name.rpartition(".")
        if kind in ("weight", "kernel", "embedding"):
            weights[module] = kind
    if site in weights:
        if _last(site) not in _EMBEDDINGS or (head := _missing_head(site, weights, names)) is None:
            return None
        return (
            f"{site} is the embedding and, since the tree has no {head}, the head too (tied). "
            f"{_how_to_untie(head, site, weights[site])} If the model has no head at all, say "
            "layout=jaxmix.Layout('headless', jaxmix.layout.NAMES.rules)"
        )
    embedding = next((module for module in weights if _last(module) in _EMBEDDINGS), None)
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
            elif missing and not heads and _last(site) in _EMBEDDINGS and place.leaf in where:
                yield (
                    f"{site}: the layout {table.name!r} has a leaf for {missing[0]}, but the tree "
                    "has none, so that the embedding is the head too (tied). PEFT's forward "
                    "changes one side only: give the head a leaf of its own; or, where the model "
                    "has no head at all, give a jaxmix.Layout without a rule for one"
                )


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
