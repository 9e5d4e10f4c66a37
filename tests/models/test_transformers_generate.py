"""Greedy generation gives transformers' tokens."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxmix import models

from .cases import SIZES, save, tokens_of, torch_model

STEPS = 14


def expected(case: str, tokens: np.ndarray, mask: np.ndarray, ends: list[int]) -> np.ndarray:
    """Returns transformers' continuation, padded to all steps."""
    generated = torch_model(case).generate(
        torch.tensor(tokens),
        attention_mask=torch.tensor(mask.astype(int)),
        max_new_tokens=STEPS,
        do_sample=False,
        eos_token_id=ends,
        pad_token_id=ends[0],
    )
    missing = tokens.shape[1] + STEPS - generated.shape[1]
    return np.pad(generated.numpy(), ((0, 0), (0, missing)), constant_values=ends[0])


@pytest.mark.parametrize("case", ["llama-llama3", "mistral", "qwen3-all", "gemma"])
def test_greedy_tokens_match(case: str, tmp_path: Path) -> None:
    """Texts of several lengths, padded on the left, match with and without end tokens."""
    model = models.load(save(case, tmp_path))
    tokens, lengths = tokens_of(5, 3, 11), np.array([[11], [4], [8]])
    mask = np.arange(11)[None] >= 11 - lengths
    never = [SIZES["vocab_size"], SIZES["vocab_size"] + 1]
    unended = expected(case, tokens, mask, never)
    for ends in (never, [int(unended[0, 15]), int(unended[1, 13])]):
        generated = models.generate(
            model,
            jnp.asarray(tokens),
            max_new_tokens=STEPS,
            mask=jnp.asarray(mask),
            eos_token_ids=ends,
        )
        np.testing.assert_array_equal(generated, expected(case, tokens, mask, ends))
