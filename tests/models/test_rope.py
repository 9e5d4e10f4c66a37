"""Rotary position embeddings: the rotation, and the frequencies of a config."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix.errors import CheckpointError, UnsupportedError
from jaxmix.models.rope import Rope, read_rope, rotate, widened

from ..uncompiled import uncompiled
from . import tiny
from .test_reading import refusal

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def test_scores_depend_on_the_distance_of_positions_only() -> None:
    """The rotation keeps the length of each head, and turns nothing at position 0."""
    rng = np.random.default_rng(0)
    rope = Rope("default", (1.0, 0.3, 0.01))
    q, k = (jnp.asarray(rng.normal(size=(1, 4, 2, 6)), jnp.float32) for _ in "qk")
    with uncompiled():
        one, other = (
            rope(jnp.asarray(np.arange(start, start + 4)[None], jnp.int32), jnp.float32)
            for start in (0, 57)
        )
        scores = [
            jnp.einsum("bthd,bshd->bhts", rotate(q, *angles), rotate(k, *angles))
            for angles in (one, other)
        ]
        turned = rotate(q, *one)
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-4)
    np.testing.assert_array_equal(turned[:, 0], q[:, 0])
    lengths = (np.linalg.norm(x, axis=-1) for x in (turned, q))
    np.testing.assert_allclose(*lengths, rtol=1e-6)
    # The pairs are the halves of a head, not neighbours.
    pairs = np.asarray(q)[0, 1, 0].reshape(2, 3)
    turns = np.array([[np.cos(w), np.sin(w)] for w in rope.frequencies])
    expected = [pairs[0] * turns[:, 0] - pairs[1] * turns[:, 1]]
    np.testing.assert_allclose(turned[0, 1, 0, :3], expected[0], rtol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 1.5])
def test_angles_are_rounded_at_the_end(scale: float) -> None:
    """At position 1,000 bfloat16 has no integers, so angles are float32; yarn scales both."""
    rope, position = Rope("yarn", (1.0,), scale), jnp.array([[1001, 1002]], jnp.int32)
    with uncompiled():
        cos, sin = rope(position, jnp.bfloat16)
    assert cos.dtype == sin.dtype == jnp.bfloat16 and widened(jnp.bfloat16) == jnp.float32
    for i, at in enumerate((1001, 1002)):
        np.testing.assert_allclose(float(cos[0, i, 1]), scale * math.cos(at), rtol=1e-2)
        np.testing.assert_allclose(float(sin[0, i, 0]), scale * math.sin(at), rtol=1e-2)


def test_parameters_of_both_versions_of_transformers_are_one_rope() -> None:
    """Null fields are absent, and equal values may be given twice."""
    new = {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 50.0}}
    old = {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_theta": 50.0}
    extra = {**new, "rope_theta": 50.0, "partial_rotary_factor": None, "rope_scaling": None}
    ropes = {read_rope(values, 8, 64, "config.json") for values in (new, old, extra)}
    assert len(ropes) == 1
    (rope,) = ropes
    expected = 50.0 ** -(np.arange(4) / 4) / 2
    np.testing.assert_allclose(rope.frequencies, expected, rtol=1e-6)


def test_rope_frequencies_match_the_formulas() -> None:
    """The frequencies equal the formulas, or lie between their limits."""
    default = np.array(tiny.config(head_dim=16).rope.frequencies)
    np.testing.assert_allclose(default, 10000.0 ** -(np.arange(8) / 8), rtol=1e-6)
    theta = tiny.config(head_dim=16, rope_theta=100.0).rope
    np.testing.assert_allclose(theta.frequencies, 100.0 ** -(np.arange(8) / 8), rtol=1e-6)
    linear = tiny.config(head_dim=16, rope_scaling={"type": "linear", "factor": 4}).rope
    np.testing.assert_allclose(np.array(linear.frequencies) * 4, default, rtol=1e-6)
    llama3 = np.array(tiny.config(head_dim=16, rope_parameters=LLAMA3).rope.frequencies)
    # In 64 tokens ω makes 64ω/2π turns: above 4 it is unchanged, below 1 divided by 8.
    turns = 64 * default / (2 * math.pi)
    np.testing.assert_allclose(llama3[turns > 4], default[turns > 4], rtol=1e-6)
    np.testing.assert_allclose(llama3[turns < 1], default[turns < 1] / 8, rtol=1e-6)
    is_between = (turns > 1) & (turns < 4)
    assert np.any(is_between)
    assert np.all(
        (default[is_between] > llama3[is_between]) & (llama3[is_between] > default[is_between] / 8)
    )
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    assert tiny.config(rope_parameters=yarn).rope.scale == 0.1 * math.log(4) + 1


def test_scaling_defaults() -> None:
    """The original length defaults to max_position_embeddings, yarn's factor to their ratio."""
    without_length = {name: value for name, value in LLAMA3.items() if "original" not in name}
    assert (
        tiny.config(rope_parameters=without_length, max_position_embeddings=64).rope
        == tiny.config(rope_parameters=LLAMA3).rope
    )
    yarn = {"rope_type": "yarn", "original_max_position_embeddings": 64}
    assert (
        tiny.config(rope_parameters=yarn, max_position_embeddings=256).rope
        == tiny.config(rope_parameters={**yarn, "factor": 4.0}).rope
    )


def test_unsupported_ropes_are_refused() -> None:
    message = refusal(UnsupportedError, rope_scaling={"type": "dynamic", "factor": 2.0})
    assert message == (
        "config.json: rope type 'dynamic' is not supported, expected one of default, linear, "
        "llama3, yarn. If texts are not longer than in training, remove the scaling."
    )
    message = refusal(UnsupportedError, rope_parameters={"full_attention": {"rope_theta": 1.0}})
    assert "unsupported fields of a 'default' rope:\n  full_attention = {" in message
    for fields in (
        {"partial_rotary_factor": 0.5},
        {"rope_scaling": {"partial_rotary_factor": 0.5}},
    ):
        assert "partial_rotary_factor = 0.5\nIf they do not" in refusal(UnsupportedError, **fields)
    assert tiny.config(partial_rotary_factor=1.0) == tiny.config()
    message = refusal(CheckpointError, rope_scaling={"type": "linear"})
    assert (
        "invalid fields of a 'linear' rope, expected positive numbers:\n  factor is None\n"
        in message
    )
    yarn = {"rope_type": "yarn", "factor": -1, "truncate": 3, "beta_fast": "x"}
    message = refusal(CheckpointError, rope_parameters=yarn)
    assert (
        "factor is -1\n" in message
        and "beta_fast is 'x'\n" in message
        and "truncate is 3\n" in message
    )
    message = refusal(CheckpointError, rope_scaling=LLAMA3, rope_parameters={"rope_theta": 3.0})
    assert "rope_scaling is {" in message and "Keep one of them" in message
    message = refusal(CheckpointError, rope_theta=2.0, rope_parameters={"rope_theta": 3.0})
    assert (
        "rope_theta is 2.0 at the top level and 3.0 in the rope parameters. Keep one of them"
        in message
    )
    message = refusal(CheckpointError, rope_scaling="linear")
    assert "the rope parameters are 'linear', expected an object" in message
