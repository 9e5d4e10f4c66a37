"""Patterns for ``pytest.raises(match=…)``, which by itself searches for any fragment."""

import re

__all__ = ["UNTIE", "full_text", "tied_embedding", "tied_to", "ties"]

# JAX adds this note to some errors that pass through its frames, and pytest matches notes too.
_NOTE = r"(\n-{20}\nFor simplicity, JAX has removed its internal frames .*)?"

# What a merge says below its ties.
UNTIE = (
    "\nUse untie=True to untie them in the output: lm_head.weight is then written as a separate "
    "tensor, and tie_word_embeddings set to false in config.json."
)


def full_text(message: str) -> str:
    """Returns a pattern that matches exactly this message."""
    return rf"\A{re.escape(message)}{_NOTE}\Z"


def ties(*problems: str, tree: str = "the tree") -> str:
    """Returns the error about sites at tied tensors, one line each."""
    lines = (f"\n  {problem}" for problem in problems)
    return f"{tree} ties the tensors of these sites to others:{''.join(lines)}"


def tied_embedding(
    site: str = "model.embed_tokens",
    new: str = "lm_head.weight",
    copied: str | None = None,
    *,
    advice: bool = True,
) -> str:
    """Returns the line about an embedding that is the head too, and the leaf that unties it."""
    head = new.rpartition(".")[0]
    tie = f"{site} is the embedding and, since there is no {head}, the head too (tied)"
    if not advice:
        return tie
    return (
        f"{tie}. {_untying(new, copied or f'{site}.weight')} If the model has no head at all, pass "
        "layout=jaxmix.Layout('headless', jaxmix.layout.NAMES.rules)"
    )


def tied_to(site: str, embedding: str = "model.embed_tokens", *, advice: bool = True) -> str:
    """Returns the line about a site that shares the weight of an embedding."""
    tie = f"{site} is tied to {embedding}"
    return f"{tie}. {_untying(f'{site}.weight', f'{embedding}.weight')}" if advice else tie


def _untying(new: str, copied: str) -> str:
    return (
        "The tree has one leaf for both, and PEFT's forward changes one side only. Untie it: add "
        f"a leaf {new}, a copy of {copied}, and run the model with tie_word_embeddings=False (a "
        "jaxmix.models.Decoder: model.untied())."
    )
