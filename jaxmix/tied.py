"""Tied embeddings: one leaf that is both an embedding and the head of a language model.

PEFT's forward changes only the side that is looked up, its merge changes both. With one leaf for
both, no tree of weights computes PEFT's forward, so such a tree has to be untied first.
"""

from collections.abc import Collection

__all__ = ["tied_problem"]

# Where Hugging Face's models keep an embedding and the head that may be tied to it.
_EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings")
_HEADS = ("lm_head", "embed_out", "output", "decoder")


def tied_problem(site: str, names: Collection[str]) -> str | None:
    """Whether a site's weight is also the head of the model, or the other way around.

    Args:
        site: the PyTorch name of a module whose weight is to change.
        names: the dotted names of all leaves of the tree.

    Returns:
        What is wrong and how to untie, in words; None if nothing is.

    Example:
        >>> print(tied_problem("model.embed_tokens", ["model.embed_tokens.weight"]))
        the tree has no head of its own, so that this leaf is both embedding and head ...
        >>> tied_problem("model.embed_tokens", ["model.embed_tokens.weight", "lm_head.weight"])
    """
    names = [name.removeprefix("params.") for name in names]
    modules = {name.rpartition(".")[0] for name in names}
    prefix, _, last = site.rpartition(".")
    if last in _EMBEDDINGS and site in modules:
        if _has_head(modules) or not _is_language_model(prefix, names):
            return None
        head = "cls.predictions.decoder" if last == "word_embeddings" else "lm_head"
        return (
            "the tree has no head of its own, so that this leaf is both embedding and head (tied). "
            "PEFT's forward changes the embedding only. Untie it: add a second leaf, "
            f"params['{head}.weight'] = params['{site}.weight'] (in Flax {head}.kernel, transposed), "
            "and run the model with tie_word_embeddings=False. If the model has no head at all, say "
            "layout=jaxmix.Layout('headless', jaxmix.layout.NAMES.rules)"
        )
    embedding = next((m for m in modules if m.rpartition(".")[2] in _EMBEDDINGS), None)
    if last in _HEADS and site not in modules and embedding and not _has_head(modules):
        return (
            f"the head is tied to {embedding}: the tree has one leaf for both. Untie it: add "
            f"params['{site}.weight'] = params['{embedding}.weight'] (in Flax {site}.kernel, "
            "transposed), and run the model with tie_word_embeddings=False"
        )
    return None


def _has_head(modules: Collection[str]) -> bool:
    """Whether a module outside of any layer is named as a head is."""
    return any(
        module.rpartition(".")[2] in _HEADS and not any(c.isdigit() for c in module.split("."))
        for module in modules
    )


def _is_language_model(prefix: str, names: Collection[str]) -> bool:
    """Whether the leaves are those of a model with a head on top, to judge by their names.

    BERT's head has more leaves than the tied one. A decoder with a head keeps everything else below
    one prefix (``model.``); without a prefix it has no head, and with other leaves beside the prefix
    (``score``) it has another one.
    """
    if any(name.startswith("cls.predictions.") for name in names):
        return True
    outer = prefix.split(".")[0]
    return bool(outer) and outer != "bert" and all(n.startswith(f"{outer}.") for n in names)
