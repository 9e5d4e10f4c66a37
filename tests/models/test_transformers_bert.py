"""BERT's hidden states and pooled outputs match transformers'."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from transformers import AutoConfig, BertForMaskedLM, BertForPreTraining

from jaxmix import models
from jaxmix.errors import CheckpointError

from .cases import distance, tokens_of
from .gpt2_and_bert import (
    BERTS,
    CASES,
    outputs,
    randomize,
    save,
    state_of,
    torch_model,
    torch_model64,
)

MASK = np.arange(19)[None] < np.array([[19], [12]])
TYPES = np.random.default_rng(0).integers(0, 3, (2, 19))


@nnx.jit
def run(model: models.Bert, tokens: Any, **inputs: Any) -> tuple[Any, Any]:
    """Returns hidden states and pooled outputs."""
    hidden = model(tokens, **inputs)
    return hidden, model.pooled(hidden) if model.config.pooler else None


@pytest.mark.parametrize("case", BERTS)
def test_outputs_match_in_64_bits(case: str, tmp_path: Path) -> None:
    """With padding and token types, the outputs match outside of the padding."""
    tokens = tokens_of(1)
    inputs = {"attention_mask": MASK.astype(int), "token_type_ids": TYPES}
    reference = outputs(torch_model64(case), tokens, **inputs)
    with jax.enable_x64(True):
        model = models.load(save(case, tmp_path), dtype=jnp.float64)
        assert isinstance(model, models.Bert)
        hidden, pooled = run(model, tokens, mask=MASK, token_types=TYPES)
    expected = reference.last_hidden_state.numpy()
    assert distance(np.asarray(hidden)[MASK], expected[MASK]) < 1e-12
    assert distance(np.asarray(pooled), reference.pooler_output.numpy()) < 1e-12


def test_outputs_match_in_32_bits(tmp_path: Path) -> None:
    """Without mask and token types, the outputs match."""
    model = models.load(save("bert", tmp_path))
    hidden, pooled = run(model, tokens_of(2))
    reference = outputs(torch_model("bert"), tokens_of(2))
    assert model.dtype == hidden.dtype == jnp.float32
    assert distance(np.asarray(hidden), reference.last_hidden_state.numpy()) < 1e-5
    assert distance(np.asarray(pooled), reference.pooler_output.numpy()) < 1e-5


@pytest.mark.parametrize("change", [{"layer_norm_eps": 1e-5}, {"activation": "gelu"}])
def test_wrong_config_field_is_detected(change: dict) -> None:
    """The comparison detects a field that is not used."""
    case = "bert-relu"
    config = models.read_config(CASES[case])
    misread_model = models.from_torch(replace(config, **change), state_of(torch_model(case)))
    expected = outputs(torch_model(case), tokens_of(1)).last_hidden_state.numpy()
    assert distance(np.asarray(run(misread_model, tokens_of(1))[0]), expected) > 1e-4


def test_bfloat16_error_is_rounding(tmp_path: Path) -> None:
    """The error relative to float32 is at most 1.5 times that of transformers."""
    reference = deepcopy(torch_model("bert")).bfloat16()
    model = models.load(save("bert", tmp_path, reference))
    rounded_reference = outputs(reference, tokens_of(3)).last_hidden_state.float().numpy()
    truth = outputs(reference.float(), tokens_of(3)).last_hidden_state.numpy()
    hidden = np.asarray(run(model, tokens_of(3))[0])
    assert model.dtype == hidden.dtype == jnp.bfloat16
    reference_error = np.std(rounded_reference - truth) / np.std(truth)
    assert np.std(hidden.astype(np.float32) - truth) / np.std(truth) < 1.5 * reference_error < 0.05


def test_weights_round_trip() -> None:
    state = state_of(torch_model("bert"))
    tensors = models.to_torch(models.from_torch(models.read_config(CASES["bert"]), state))
    assert tensors.keys() == state.keys()
    for name, leaf in tensors.items():
        np.testing.assert_array_equal(leaf, state[name])


def test_head_is_ignored_by_name(tmp_path: Path) -> None:
    """A file with the prefix, a head and no pooler loads if the head is ignored by name."""
    reference = BertForMaskedLM(AutoConfig.for_model(**CASES["bert-relu"])).eval()
    randomize(reference, seed=4)
    with pytest.raises(CheckpointError) as caught:
        models.load(save("bert", tmp_path, reference))
    message = str(caught.value)
    assert (
        "tensors that do not fit a bert with 1 layers:\n  unused: cls.predictions.bias" in message
    )
    assert message.endswith("To skip a head, name its modules, such as ignore=['cls'].")
    model = models.load(tmp_path, ignore=["cls"])
    hidden, pooled = run(model, tokens_of(3))
    assert pooled is None and not model.config.pooler
    expected = outputs(reference.bert, tokens_of(3)).last_hidden_state.numpy()
    assert distance(np.asarray(hidden), expected) < 1e-5


def test_old_norm_names_are_read() -> None:
    """``LayerNorm.gamma`` and ``.beta``, as in bert-base-uncased, are read."""
    reference = BertForPreTraining(AutoConfig.for_model(**CASES["bert-relu"]))
    randomize(reference, seed=5)
    renamed = {}
    for name, leaf in state_of(reference).items():
        name = name.replace("LayerNorm.weight", "LayerNorm.gamma")
        renamed[name.replace("LayerNorm.bias", "LayerNorm.beta")] = leaf
    config = models.read_config(CASES["bert-relu"])
    tensors = models.to_torch(models.from_torch(config, renamed, ignore=["cls"]))
    for name, leaf in state_of(reference.bert).items():
        np.testing.assert_array_equal(tensors[name], leaf)
