"""GPT-2's logits and greedy tokens match transformers'."""

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from transformers import AutoConfig, GPT2Model

from jaxmix import models

from .cases import distance, logits_of, tokens_of
from .gpt2_and_bert import (
    CASES,
    GPTS,
    outputs,
    randomize,
    save,
    state_of,
    torch_model,
    torch_model64,
)


@pytest.mark.parametrize("case", [case for case in GPTS if case != "gpt2-upcast"])
def test_logits_match_in_64_bits(case: str, tmp_path: Path) -> None:
    expected = outputs(torch_model64(case), tokens_of(1)).logits.numpy()
    with jax.enable_x64(True):
        model = models.load(save(case, tmp_path), dtype=jnp.float64)
        assert isinstance(model, models.GPT2)
        assert distance(logits_of(model, tokens_of(1)), expected) < 1e-12


# The second case computes its scores in 32 bits, even in a 64-bit model.
@pytest.mark.parametrize("case", ["gpt2", "gpt2-upcast"])
def test_logits_match_in_32_bits(case: str, tmp_path: Path) -> None:
    model = models.load(save(case, tmp_path))
    expected = outputs(torch_model(case), tokens_of(1)).logits.numpy()
    logits = logits_of(model, tokens_of(1))
    assert model.dtype == logits.dtype == jnp.float32
    assert distance(logits, expected) < 1e-5


@pytest.mark.parametrize("change", [{"layer_norm_eps": 1e-5}, {"activation": "gelu_tanh"}])
def test_wrong_config_field_is_detected(change: dict) -> None:
    """The comparison detects a field that is not used."""
    case = "gpt2-inner"
    config = models.read_config(CASES[case])
    misread_model = models.from_torch(replace(config, **change), state_of(torch_model(case)))
    expected = outputs(torch_model(case), tokens_of(1)).logits.numpy()
    assert distance(logits_of(misread_model, tokens_of(1)), expected) > 1e-4


def test_bfloat16_error_is_rounding(tmp_path: Path) -> None:
    """The error relative to float32 is at most 1.5 times that of transformers."""
    reference = deepcopy(torch_model("gpt2")).bfloat16()
    model = models.load(save("gpt2", tmp_path, reference))
    rounded_reference = outputs(reference, tokens_of(3)).logits.float().numpy()
    truth = outputs(reference.float(), tokens_of(3)).logits.numpy()
    logits = logits_of(model, tokens_of(3))
    assert model.dtype == logits.dtype == jnp.bfloat16
    reference_error = np.std(rounded_reference - truth) / np.std(truth)
    assert np.std(logits.astype(np.float32) - truth) / np.std(truth) < 1.5 * reference_error < 0.05


def test_weights_round_trip() -> None:
    """The flat dict has torch's names and values."""
    for case in ("gpt2", "gpt2-untied"):
        state = state_of(torch_model(case))
        tensors = models.to_torch(models.from_torch(models.read_config(CASES[case]), state))
        tied = set() if case == "gpt2-untied" else {"lm_head.weight"}
        assert tensors.keys() == state.keys() - tied
        for name, leaf in tensors.items():
            np.testing.assert_array_equal(leaf, state[name])


def test_names_without_the_prefix_are_read(tmp_path: Path) -> None:
    """Files of ``GPT2Model``, whose names have no prefix, are read."""
    reference = GPT2Model(AutoConfig.for_model(**CASES["gpt2"])).eval()
    randomize(reference, seed=3)
    model = models.load(save("gpt2", tmp_path, reference))
    hidden = nnx.jit(lambda model, tokens: model.hidden(tokens)[0])(model, tokens_of(2))
    expected = outputs(reference, tokens_of(2)).last_hidden_state.numpy()
    assert distance(np.asarray(hidden), expected) < 1e-5


def test_left_padding_matches_the_mask(tmp_path: Path) -> None:
    """A negative position has the effect of transformers' mask."""
    tokens, lengths = tokens_of(4, 3, 13), np.array([13, 6, 9])
    mask = np.arange(13)[None] >= 13 - lengths[:, None]
    positions = np.where(mask, np.cumsum(mask, axis=1) - 1, -1)
    arguments = {"attention_mask": mask.astype(int), "position_ids": positions.clip(0)}
    expected = outputs(torch_model("gpt2"), tokens, **arguments).logits.numpy()
    model = models.load(save("gpt2", tmp_path))
    logits = logits_of(model, tokens, positions=positions)
    assert distance(logits[mask], expected[mask]) < 1e-5


def test_greedy_tokens_match(tmp_path: Path) -> None:
    """Sequences of several lengths, padded on the left, match up to the last position."""
    model = models.load(save("gpt2", tmp_path))
    tokens, lengths = tokens_of(5, 3, 11), np.array([[11], [4], [8]])
    mask = np.arange(11)[None] >= 11 - lengths
    generated = models.generate(
        model, jnp.asarray(tokens), max_new_tokens=16, mask=jnp.asarray(mask), eos_token_ids=()
    )
    expected = torch_model("gpt2").generate(
        torch.tensor(tokens),
        attention_mask=torch.tensor(mask.astype(int)),
        max_new_tokens=16,
        do_sample=False,
        eos_token_id=47,
        pad_token_id=47,
    )
    np.testing.assert_array_equal(generated, expected.numpy())


def test_published_config_is_read(tmp_path: Path) -> None:
    """All fields of the published file are used or known to be harmless."""
    values = json.loads((save("gpt2", tmp_path) / "config.json").read_text())
    unused_fields = {"n_ctx": 26, "task_specific_params": {"text-generation": {"max_length": 50}}}
    assert models.read_config({**values, **unused_fields}) == models.read_config(values)
