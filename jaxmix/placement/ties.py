"""Whether the leaves of a tree show that an embedding is also the head of the language model.

PEFT's forward changes only the side that is looked up, its merge changes both. With one leaf for
both sides, no weights compute PEFT's forward, so such a tree must be untied first. A tree does not
state that it is tied; it merely lacks a head. Its leaves' names show whether it should have one.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from jaxmix.placement.names import bare

__all__ = ["EMBEDDINGS", "HEADS", "Ties", "is_embedding"]

# The names of embeddings in Hugging Face's models, and of heads that may be tied to them. Compared
# with the files that transformers saves by tests/placement/test_tied.py.
EMBEDDINGS = (
    *("embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings", "shared"),
    *("embeddings", "word_embedding", "tokens_embed"),
)
HEADS = (
    *("lm_head", "embed_out", "output", "output_layer", "proj_out", "lm_loss", "vocab_projector"),
    *("cls.predictions.decoder", "lm_head.decoder", "predictions.decoder", "generator_lm_head"),
)
# Other heads. Trees that have one need none of the above.
_OTHER_HEADS = (
    *("decoder", "head", "head.decoder", "lm_head.out_proj", "output_projection"),
    *("model.decoder.output_projection", "pred_layer.proj", "text_model.lm_head"),
)
# What a file holds of a tied head (its bias, or the layers before it), and the head's name.
_TRACES = {
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
# First parts of names that belong to a part of a model and are not a prefix of all its names.
_PARTS = ("encoder", "decoder", "embeddings")


@dataclass(frozen=True)
class Ties:
    """The names of a tree's leaves, prepared to detect tied embeddings.

    Args:
        names: The leaves' names without what wrappers add.
        weights: ``{module: name of its weight's leaf in it}``, such as ``"kernel"``.
    """

    names: tuple[str, ...]
    weights: Mapping[str, str]

    @classmethod
    def of(cls, names: Collection[str]) -> "Ties":
        """Prepares the names of a tree's leaves.

        Args:
            names: The dotted names of all leaves.
        """
        short = tuple(bare(name.removeprefix("params.")) for name in names)
        weights: dict[str, str] = {}
        for name in short:
            module, _, kind = name.rpartition(".")
            if kind in ("weight", "kernel", "embedding"):
                weights[module] = kind
        return cls(short, weights)

    def problem(self, site: str) -> str | None:
        """Describes why a site shares its weight with the head or the embedding.

        Args:
            site: The PyTorch name of a module whose weight is to change.

        Returns:
            What is tied; None if the site has a weight of its own.

        Example:
            >>> print(Ties.of(["model.embed_tokens.weight"]).problem("model.embed_tokens"))
            model.embed_tokens is the embedding and, since there is no lm_head, the head too (tied)
        """
        if (tie := self._tie(site)) is None:
            return None
        missing, embedding = tie
        if missing == bare(site):
            return f"{missing} is tied to {embedding}"
        return f"{embedding} is the embedding and, since there is no {missing}, the head too (tied)"

    def advice(self, site: str) -> str:
        """Returns how to untie a site in the tree; an empty text if it is not tied."""
        if (tie := self._tie(site)) is None:
            return ""
        missing, embedding = tie
        advice = _how_to_untie(missing, embedding, self.weights[embedding])
        if missing == bare(site):
            return advice
        headless = "layout=jaxmix.Layout('headless', jaxmix.layout.NAMES.rules)"
        return f"{advice} If the model has no head at all, pass {headless}"

    def _tie(self, site: str) -> tuple[str, str] | None:
        """The module that has no weight of its own, and the embedding whose weight it shares."""
        site, weights = bare(site), self.weights
        if not is_embedding(site) and site not in HEADS:
            return None
        if site in weights:
            head = _missing_head(site, weights, self.names) if is_embedding(site) else None
            return None if head is None else (head, site)
        embedding = next((module for module in weights if is_embedding(module)), None)
        if embedding is None:
            return None
        shares = _last(site) == "embed_tokens" and _last(embedding) == "shared"
        is_head = site in HEADS and site == _missing_head(embedding, weights, self.names)
        return (site, embedding) if shares or is_head else None


def is_embedding(module: str) -> bool:
    """Returns whether a module has the name of an embedding that heads are tied to.

    Args:
        module: Its PyTorch name.
    """
    return _last(module) in EMBEDDINGS


def _last(module: str) -> str:
    return module.rpartition(".")[2]


def _how_to_untie(missing: str, embedding: str, kind: str) -> str:
    """Explains how to give the module ``missing`` a leaf of its own."""
    leaf, source = kind, f"{embedding}.{kind}"
    if kind == "embedding" and missing in HEADS:
        leaf, source = "kernel", f"{source} transposed"
    return (
        "The tree has one leaf for both, and PEFT's forward changes one side only. Untie it: add a "
        f"leaf {missing}.{leaf}, a copy of {source}, and run the model with "
        "tie_word_embeddings=False (a jaxmix.models.Decoder: model.untied())."
    )


def _missing_head(embedding: str, weights: Mapping[str, str], names: Collection[str]) -> str | None:
    """Returns the head that the model of an embedding lacks; None if it has or needs none."""
    if any(head in weights for head in (*HEADS, *_OTHER_HEADS)):
        return None
    for start, head in _TRACES.items():
        if any(name.startswith(start) for name in names):
            return head
    return _head_by_prefix(embedding, names)


def _head_by_prefix(embedding: str, names: Collection[str]) -> str | None:
    """Returns the head of a decoder whose file has no trace of the head.

    All leaves are then below one prefix (``model.``, ``transformer.``). A model without it has no
    head, and one with other leaves next to it (``score``) has another head. An encoder
    (``….embeddings.word_embeddings``) would have its head's bias.
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
