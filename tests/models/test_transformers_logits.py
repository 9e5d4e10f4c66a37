"""The decoder's logits match transformers' up to float32 rounding."""

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxmix import models

from .cases import CASES, distance, logits_of, save, tokens_of, torch_logits, torch_model

TOLERANCE = 1e-5


@pytest.mark.one_of(2)
@pytest.mark.parametrize("case", CASES)
def test_logits_match(case: str, tmp_path: Path) -> None:
    model = models.load(save(case, tmp_path))
    tokens = tokens_of(1)
    assert model.dtype == jnp.float32
    assert distance(logits_of(model, tokens), torch_logits(case, tokens)) < TOLERANCE


@pytest.mark.parametrize(
    ("case", "change"),
    [
        ("llama", {"rms_norm_eps": 1e-6}),
        ("llama-gelu", {"activation": "gelu_tanh"}),
        ("mistral", {"windows": (6,)}),
        ("qwen3-all", {"windows": (6, 6)}),
        ("gemma", {"norm_offset": 0.0}),
        ("gemma", {"embed_scale": 1.0}),
    ],
)
def test_wrong_config_field_is_detected(case: str, change: dict, tmp_path: Path) -> None:
    """The comparison detects a field that is not used."""
    model = models.load(save(case, tmp_path))
    misread_model = models.from_torch(replace(model.config, **change), models.to_torch(model))
    tokens = tokens_of(1)
    assert distance(logits_of(misread_model, tokens), torch_logits(case, tokens)) > 3 * TOLERANCE


@pytest.mark.parametrize(
    "case", ["llama-linear", "llama-llama3", "llama-yarn", "llama-yarn-mscale"]
)
def test_wrong_rope_scaling_is_detected(case: str, tmp_path: Path) -> None:
    """The comparison detects another scaling of the angles."""
    model = models.load(save(case, tmp_path))
    values = json.loads((tmp_path / "config.json").read_text())
    values["rope_parameters"] = {"rope_theta": values["rope_parameters"]["rope_theta"]}
    without_scaling = models.read_config(values)
    tokens = tokens_of(1)
    misread_model = models.from_torch(without_scaling, models.to_torch(model))
    assert distance(logits_of(misread_model, tokens), torch_logits(case, tokens)) > 1e-3


def test_large_positions_match(tmp_path: Path) -> None:
    """Angles match even where one ulp of a frequency turns them by a hundredth of a turn."""
    for case in ("llama-theta", "llama-linear", "llama-llama3", "llama-yarn"):
        reference = torch_model(case).model.rotary_emb
        rope = models.read_config(save(case, tmp_path)).rope
        np.testing.assert_allclose(rope.frequencies, reference.inv_freq.numpy(), rtol=2e-7)
        assert rope.scale == pytest.approx(reference.attention_scaling, rel=1e-12)
    model, tokens = models.load(save("llama", tmp_path)), tokens_of(6)
    positions = np.broadcast_to(np.arange(19) + 100_000, (2, 19))
    expected = torch_logits("llama", tokens, position_ids=positions)
    assert distance(logits_of(model, tokens, positions), expected) < TOLERANCE


@pytest.mark.parametrize("case", ["llama", "llama-linear", "llama-llama3", "llama-yarn"])
def test_transformers_4_rope_fields_are_read(case: str, tmp_path: Path) -> None:
    config = models.read_config(save(case, tmp_path))
    values = json.loads((tmp_path / "config.json").read_text())
    rope = values.pop("rope_parameters")
    values["rope_theta"] = rope.pop("rope_theta")
    rope_type = rope.pop("rope_type")
    for type_key in ("type", "rope_type"):
        scaling = {type_key: rope_type, **rope}
        values["rope_scaling"] = None if rope_type == "default" else scaling
        assert models.read_config(values) == config


@pytest.mark.parametrize("case", ["llama-biases", "qwen2-window", "gemma"])
def test_sharded_folder_matches(case: str, tmp_path: Path) -> None:
    save(case, tmp_path, max_shard_size="8KB")
    files = models.tensor_files(tmp_path)
    assert len(set(files.values())) > 2
    assert not (tmp_path / "model.safetensors").exists()
    tokens = tokens_of(2)
    logits = logits_of(models.load(tmp_path), tokens)
    assert distance(logits, torch_logits(case, tokens)) < TOLERANCE


def test_flat_dict_equals_torch_state_dict(tmp_path: Path) -> None:
    state = {name: leaf.numpy() for name, leaf in torch_model("qwen3-all").state_dict().items()}
    tensors = models.to_torch(models.load(save("qwen3-all", tmp_path)))
    assert tensors.keys() == state.keys()
    for name, leaf in tensors.items():
        np.testing.assert_array_equal(leaf, state[name])


@pytest.mark.parametrize("case", ["qwen3", "gemma"])
def test_bfloat16_error_is_rounding(case: str, tmp_path: Path) -> None:
    """The error relative to float32 is at most 1.5 times that of transformers."""
    model, tokens = deepcopy(torch_model(case)).bfloat16(), tokens_of(3)
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        reference = model(torch.tensor(tokens)).logits.float().numpy()
        truth = model.float()(torch.tensor(tokens)).logits.numpy()
    loaded = models.load(tmp_path)
    assert {leaf.dtype for leaf in models.to_torch(loaded).values()} == {np.dtype(jnp.bfloat16)}
    logits = logits_of(loaded, tokens)
    assert logits.dtype == jnp.bfloat16
    reference_error = np.std(reference - truth) / np.std(truth)
    assert np.std(logits.astype(np.float32) - truth) / np.std(truth) < 1.5 * reference_error < 0.05


@pytest.mark.parametrize("case", ["mistral", "qwen3-all"])
def test_left_padding_matches_the_mask(case: str, tmp_path: Path) -> None:
    """A negative position has the effect of transformers' mask."""
    tokens, lengths = tokens_of(4, 3, 13), np.array([13, 6, 9])
    mask = np.arange(13)[None] >= 13 - lengths[:, None]
    positions = np.where(mask, np.cumsum(mask, axis=1) - 1, -1)
    expected = torch_logits(
        case, tokens, attention_mask=mask.astype(int), position_ids=positions.clip(0)
    )
    model = models.load(save(case, tmp_path))
    logits = logits_of(model, tokens, positions=positions)
    assert distance(logits[mask], expected[mask]) < TOLERANCE
