"""The tables of the fields of config.json: each field has one meaning for a model type."""

from collections.abc import Mapping, Set
from typing import Any

import pytest

from jaxmix.models.model_types import BERT, COMMON, DECODER_TYPES, GPT2, HARMLESS, REFUSED

# For each type: the fields that it reads, their defaults, and those that it refuses.
TYPES: dict[str, tuple[Set[str], Mapping[str, Any], Mapping[str, str]]] = {
    **{name: (COMMON | kind.reads, kind.defaults, {}) for name, kind in DECODER_TYPES.items()},
    "gpt2": (GPT2["reads"], GPT2["defaults"], GPT2["refuses"]),
    "bert": (BERT["reads"], BERT["defaults"], BERT["refuses"]),
}


@pytest.mark.parametrize("name", TYPES)
def test_a_field_is_either_read_or_refused(name: str) -> None:
    reads, _, refuses = TYPES[name]
    assert not reads & (REFUSED.keys() | refuses.keys())
    assert not HARMLESS & REFUSED.keys()


@pytest.mark.parametrize("name", TYPES)
def test_defaults_are_those_of_fields_that_are_read(name: str) -> None:
    """The default of a misspelled field would never be used."""
    reads, defaults, _ = TYPES[name]
    assert defaults.keys() <= reads and None not in defaults.values()


@pytest.mark.parametrize("name", DECODER_TYPES)
def test_a_bias_that_the_config_decides_has_a_field(name: str) -> None:
    """Otherwise a file's attention_bias would be refused, or be read without effect."""
    kind = DECODER_TYPES[name]
    if None in (kind.qkv_bias, kind.o_bias):
        assert "attention_bias" in kind.reads
    assert (kind.defaults.get("hidden_act") == "gelu_pytorch_tanh") == kind.gemma
