"""Patterns for ``pytest.raises(match=…)``, which by itself searches for any fragment."""

import re

__all__ = ["full_text", "tied_embedding", "tied_to", "ties"]

# JAX adds this note to some errors that pass through its frames, and pytest matches notes too.
_NOTE = r"(\n-{20}\nFor simplicity, JAX has removed its internal frames .*)?"


def full_text(message: str) -> str:
    """Returns a pattern that matches exactly this message."""
    return rf"\A{re.escape(message)}{_NOTE}\Z"


def ties(*problems: str, tree: str = "the tree") -> str:
    """Returns the error about sites at tied tensors, one line each."""
    lines = (f"\n  {problem}" for problem in problems)
    return f"{tree} ties the tensors of these sites to others:{''.join(lines)}"


def tied_embedding(
    site: str = "model.embed_tokens", new: str = "lm_head.weight", copied: str | None = None
) -> str:
    """Returns the line about an embedding that is the head too, and the leaf that unties it."""
    return (
        f"{site} is the embedding and, since the tree has no lm_head, the head too (tied). "
        f"{_untying(new, copied or f'{site}.weight')} If the model has no head at all, pass "
        "layout=jaxmix.Layout('headless', jaxmix.layout.NAMES.rules)"
    )


def tied_to(site: str, embedding: str = "model.embed_tokens") -> str:
    """Returns the line about a site that shares the weight of an embedding."""
    return f"{site} is tied to {embedding}. {_untying(f'{site}.weight', f'{embedding}.weight')}"


def _untying(new: str, copied: str) -> str:
    return (
        "The tree has one leaf for both, and PEFT's forward changes one side only. Untie it: add "
        f"a leaf {new}, a copy of {copied}, and run the model with tie_word_embeddings=False (a "
        "jaxmix.models.Decoder: model.untied())."
    )
