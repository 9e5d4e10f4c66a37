"""Tensors of a file that are not updates."""

import warnings

import numpy as np
import pytest

from jaxmix.converters.adapters.lycoris.bundled import without_embeddings

from ....messages import full_text

LORA = {"lora_te_q.alpha": np.ones(()), "bundle_embed.alpha": np.ones(())}


def test_embeddings_are_left_out_with_a_warning() -> None:
    """All are listed; only OneTrainer's prefix counts, and the others keep their order."""
    names = [f"bundle_emb.{word}.string_to_param.*" for word in ("cat", "dog")]
    tensors = {names[0]: np.ones(3), **LORA, names[1]: np.ones(3)}
    message = full_text(
        f"style.safetensors: bundled embeddings of new tokens are left out:\n  {names[0]}\n"
        f"  {names[1]}\nThe adapter works without them; prompts with these tokens need them in the "
        "tokenizer and the text encoder."
    )
    with pytest.warns(UserWarning, match=message):
        assert list(without_embeddings(tensors, "style.safetensors")) == list(LORA)


def test_file_without_embeddings_is_complete() -> None:
    """Without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert without_embeddings(LORA, "style.safetensors") == LORA
