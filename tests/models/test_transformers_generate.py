"""Greedy generation gives transformers' tokens."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxmix import models

from .cases import SIZES, save, tokens_of, torch_model

STEPS = 14


def expected(case: str, tokens: np.ndarray, mask: np.ndarray, end_ids: list[int]) -> np.ndarray:
    """Returns transformers' continuation, padded to all steps."""
    generated = torch_model(case).generate(
        torch.tensor(tokens),
        attention_mask=torch.tensor(mask.astype(int)),
        max_new_tokens=STEPS,
        do_sample=False,
        eos_token_id=end_ids,
        pad_token_id=end_ids[0],
    )
    missing = tokens.shape[1] + STEPS - generated.shape[1]
    return np.pad(generated.numpy(), ((0, 0), (0, missing)), constant_values=end_ids[0])


@pytest.mark.parametrize("case", ["llama-llama3", "mistral", "qwen3-all", "gemma"])
def test_greedy_tokens_match(case: str, tmp_path: Path) -> None:
    """Sequences of several lengths, padded on the left, match with and without end tokens."""
    model = models.load(save(case, tmp_path))
    tokens, lengths = tokens_of(5, 3, 11), np.array([[11], [4], [8]])
    mask = np.arange(11)[None] >= 11 - lengths
    unused_ids = [SIZES["vocab_size"], SIZES["vocab_size"] + 1]
    without_ends = expected(case, tokens, mask, unused_ids)
    for end_ids in (unused_ids, [int(without_ends[0, 15]), int(without_ends[1, 13])]):
        generated = models.generate(
            model,
            jnp.asarray(tokens),
            max_new_tokens=STEPS,
            mask=jnp.asarray(mask),
            eos_token_ids=end_ids,
        )
        np.testing.assert_array_equal(generated, expected(case, tokens, mask, end_ids))
