"""Tensors in an adapter's file that are not updates of a weight."""

import warnings
from collections.abc import Mapping
from typing import Any

from jaxmix.errors import listing

__all__ = ["without_embeddings"]

# OneTrainer's name of textual inversions in a LoRA's file.
_EMBEDDINGS = "bundle_emb."


def without_embeddings(tensors: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Leaves out bundled embeddings of new tokens, with a warning that lists them.

    Args:
        tensors: The file's tensors.
        where: The file, for messages.

    Returns:
        The other tensors.
    """
    left_out = [key for key in tensors if key.startswith(_EMBEDDINGS)]
    if left_out:
        warnings.warn(
            f"{where}: bundled embeddings of new tokens are left out:{listing(left_out)}\n"
            "The adapter works without them; prompts with these tokens need them in the tokenizer "
            "and the text encoder.",
            stacklevel=2,
        )
    return {key: tensor for key, tensor in tensors.items() if key not in left_out}
