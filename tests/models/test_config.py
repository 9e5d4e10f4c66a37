"""Configs as static data of compiled functions."""

from dataclasses import FrozenInstanceError, replace

import pytest

from . import tiny


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_configs_that_are_read_twice_are_one_key(kind: str) -> None:
    """A model's program is found by its config; any other field makes another key."""
    first, second = tiny.config(kind), tiny.config(kind)
    assert first == second and hash(first) == hash(second) and first is not second
    assert replace(first, num_hidden_layers=3) != first
    with pytest.raises(FrozenInstanceError):
        first.vocab_size = 5


def test_heads_have_their_own_size_in_decoders_only() -> None:
    """In GPT-2 and BERT they split the hidden size."""
    assert tiny.config("llama", head_dim=10).head_dim == 10
    for kind in ("gpt2", "bert"):
        config = tiny.config(kind)
        assert config.head_dim == 4
        assert replace(config, num_attention_heads=6).head_dim == 2
    assert tiny.config("gpt2").num_key_value_heads == 3
