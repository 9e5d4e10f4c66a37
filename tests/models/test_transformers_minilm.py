"""all-MiniLM-L6-v2 with trained adapters matches PEFT's nested, unmerged forward."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmix

from .sentence_encoder import HERE, model_folder
from .test_minilm import embed, load_model, needs_the_model

pytest.importorskip("peft")

import torch
from transformers import AutoModel, AutoTokenizer

from ..parity.nested import nested
from .make_minilm import PAIRS, embeddings

STACKS = [("lora",), ("loha",), ("ia3",), ("lora", "loha", "ia3"), ("ia3", "loha", "lora")]


@cache
def torch_model() -> Any:
    """Returns the encoder in 64 bits."""
    return AutoModel.from_pretrained(model_folder()).eval().double()


@cache
def batch() -> Any:
    """Returns sentences of several lengths."""
    tokenizer = AutoTokenizer.from_pretrained(model_folder())
    return tokenizer(
        [sentence for pair in PAIRS[4:7] for sentence in pair], padding=True, return_tensors="pt"
    )


def peft_embeddings(stack: Sequence[str]) -> np.ndarray:
    """Returns PEFT's embeddings with nested adapters, the first innermost."""
    model = nested(torch_model(), [HERE / name for name in stack])
    with torch.no_grad():
        return embeddings(model, batch()).numpy()


def jaxmix_embeddings(stack: Sequence[str], model: Any) -> np.ndarray:
    """Returns jaxmix's embeddings with the same adapters."""
    mixed = jaxmix.compose(model, [jaxmix.load(HERE / name) for name in stack])
    tokens = batch()["input_ids"].numpy().astype(np.int32)
    return np.asarray(embed(mixed, tokens, batch()["attention_mask"].bool().numpy()))


@pytest.mark.thorough
@needs_the_model
def test_embeddings_match_peft() -> None:
    """Embeddings match for each adapter and two orders in 64 bits, and differ from the base's."""
    with jax.enable_x64(True):
        model = load_model(jnp.float64)
        base_embeddings = jaxmix_embeddings((), model)
        np.testing.assert_allclose(base_embeddings, peft_embeddings(()), atol=1e-10, rtol=0)
        by_stack = {stack: jaxmix_embeddings(stack, model) for stack in STACKS}
    for stack, stack_embeddings in by_stack.items():
        np.testing.assert_allclose(stack_embeddings, peft_embeddings(stack), atol=1e-10, rtol=0)
        assert np.abs(stack_embeddings - base_embeddings).max() > 1e-3
    assert np.abs(by_stack[STACKS[3]] - by_stack[STACKS[4]]).max() > 1e-3


@needs_the_model
def test_embeddings_match_peft_in_32_bits() -> None:
    """The mix of three adapters matches in 32 bits."""
    np.testing.assert_allclose(
        jaxmix_embeddings(STACKS[3], load_model()), peft_embeddings(STACKS[3]), atol=1e-5, rtol=0
    )
