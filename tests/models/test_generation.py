"""Generation: the choice of tokens, the end of a text, and the number of compilations."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxmix.errors import JaxmixError, ShapeError
from jaxmix.models import generate, to_torch
from jaxmix.models.decoder import Backbone

from . import tiny


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_greedy_takes_the_likeliest_token(kind: str) -> None:
    """Each token equals the likeliest one of a run without cache and loop."""
    model, tokens = tiny.model(kind), tiny.tokens()
    generated = generate(model, tokens, max_new_tokens=6)
    assert generated.dtype == jnp.int32
    np.testing.assert_array_equal(generated[:, :9], tokens)
    best = jnp.argmax(tiny.run(model, generated), axis=-1)
    np.testing.assert_array_equal(generated[:, 9:], best[:, 8:-1])


def test_draws_depend_on_the_key() -> None:
    """Equal keys draw equal texts; a single candidate is the likeliest token."""
    model, tokens = tiny.model(), tiny.tokens()

    def draw(seed: int, **how: Any) -> np.ndarray:
        key = jax.random.key(seed)
        return np.asarray(generate(model, tokens, max_new_tokens=6, key=key, **how))

    greedy = np.asarray(generate(model, tokens, max_new_tokens=6))
    np.testing.assert_array_equal(draw(1, temperature=1.0), draw(1, temperature=1.0))
    assert np.any(draw(1, temperature=1.0) != draw(2, temperature=1.0))
    np.testing.assert_array_equal(draw(1, temperature=3.0, top_k=1), greedy)
    np.testing.assert_array_equal(draw(1, temperature=1e-4), greedy)
    np.testing.assert_array_equal(draw(1), greedy)


def test_draws_follow_the_distribution() -> None:
    """In 4000 draws the k likeliest tokens have their shares, and other tokens never occur."""
    model = tiny.model()
    tokens = jnp.broadcast_to(tiny.tokens(rows=1), (4000, 9))
    logits = np.asarray(tiny.run(model, tiny.tokens())[0, -1], np.float64)
    how = {"temperature": 0.25, "top_k": 5, "key": jax.random.key(3)}
    draws = generate(model, tokens, max_new_tokens=1, **how)[:, -1]
    weights = np.exp((logits - logits.max()) / 0.25)
    weights[np.argsort(logits)[:-5]] = 0
    shares = weights / weights.sum()
    frequencies = np.bincount(np.asarray(draws), minlength=23) / 4000
    assert not np.any(frequencies[shares == 0])
    assert np.all(np.abs(frequencies - shares) <= 5 * np.sqrt(shares * (1 - shares) / 4000))


def test_steps_and_rows_have_their_own_draws() -> None:
    """With equal logits, the tokens differ between rows and between steps."""
    model = tiny.model()
    model.lm_head.kernel[...] = jnp.zeros_like(model.lm_head.kernel[...])
    how = {"temperature": 1.0, "key": jax.random.key(0)}
    generated = generate(model, tiny.tokens(), max_new_tokens=6, **how)[:, 9:]
    assert np.any(generated[0] != generated[1])
    assert len({tuple(column) for column in generated.T.tolist()}) > 4


def test_ended_rows_are_padded() -> None:
    """An ended row is padded; the other rows continue unchanged."""
    tokens = tiny.tokens()
    unended = np.asarray(generate(tiny.model(), tokens, max_new_tokens=6))[:, 9:]
    first, other = int(unended[0, 2]), int(unended[1, 1])
    ends = {"eos_token_id": first, "pad_token_id": 22}
    cases: tuple[tuple[dict[str, Any], list[int] | None, int, int], ...] = (
        ({}, [first], first, first),
        (ends, None, first, 22),
        (ends, [other], other, 22),
    )
    for fields, eos_token_ids, eos, pad in cases:
        model = tiny.model("llama", **fields)
        generated = np.asarray(
            generate(model, tokens, max_new_tokens=6, eos_token_ids=eos_token_ids)
        )[:, 9:]
        for row, continuation in zip(generated, unended, strict=True):
            at = np.flatnonzero(continuation == eos)
            stop = at[0] + 1 if len(at) else 6
            np.testing.assert_array_equal(row[:stop], continuation[:stop])
            assert np.all(row[stop:] == pad)


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_left_padding_has_no_effect(kind: str) -> None:
    """A padded row continues as its text does alone."""
    model, tokens = tiny.model(kind), tiny.tokens()
    mask = jnp.arange(9)[None, :] >= jnp.array([[0], [4]])
    padded = generate(model, tokens, max_new_tokens=6, mask=mask)
    best = np.argmax(tiny.run(model, padded[1:, 4:]), axis=-1)
    np.testing.assert_array_equal(padded[1, 9:], best[0, 4:-1])
    alone = generate(model, tokens, max_new_tokens=6)
    np.testing.assert_array_equal(padded[0], alone[0])
    assert np.any(padded[1] != alone[1])


def test_each_structure_is_traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other weights, keys, temperatures and ends do not retrace the prompt or the step."""
    traces = []
    forward = Backbone.__call__

    def counted(self: Backbone, tokens: jax.Array, *rest: Any) -> Any:
        traces.append(tokens.shape)
        return forward(self, tokens, *rest)

    monkeypatch.setattr(Backbone, "__call__", counted)
    tokens = tiny.tokens(count=7)
    for seed in range(3):
        key = jax.random.key(seed)
        graph, state = nnx.split(tiny.model(seed=seed))
        model = nnx.merge(graph, jax.tree.map(lambda leaf: 2 * leaf, state))
        how = {"temperature": 0.5 + seed, "key": key, "eos_token_ids": [seed]}
        generate(model, tokens, max_new_tokens=3, **how)
    assert traces == [(2, 7), (2, 1)]


def test_prompts_and_weights_of_other_dtypes() -> None:
    """Prompts of bytes, 64-bit models and bfloat16 weights work."""
    model, tokens = tiny.model(), tiny.tokens()
    greedy = generate(model, tokens, max_new_tokens=6)
    generated = generate(model, tokens.astype(jnp.uint8), max_new_tokens=6)
    np.testing.assert_array_equal(generated, greedy)
    how = {"temperature": 0.5, "top_k": 3, "key": jax.random.key(0)}
    with jax.enable_x64(True):
        wide = tiny.model(dtype=np.float64)
        generated = generate(wide, tokens.astype(jnp.int64), max_new_tokens=6, **how)
        assert generated.dtype == jnp.int32
    narrow = tiny.model(dtype=jnp.bfloat16)
    assert generated.shape == generate(narrow, tokens, max_new_tokens=6, **how).shape == (2, 15)


def test_arguments_are_unchanged() -> None:
    model, tokens = tiny.model(), tiny.tokens()
    before = jax.tree.map(np.array, (to_torch(model), tokens))
    generate(model, tokens, max_new_tokens=6)
    after = jax.tree.map(np.array, (to_torch(model), tokens))
    assert jax.tree.all(jax.tree.map(np.array_equal, before, after))


@pytest.mark.parametrize(
    ("error", "message", "changes"),
    [
        (
            ShapeError,
            r"int32 with shape \(9,\), expected .* a single text use tokens\[None\]",
            "flat",
        ),
        (ShapeError, r"tokens are int32 with shape \(2, 0\), .*at least one token", "empty"),
        (ShapeError, r"tokens are float32 with shape \(2, 9\), expected integers", "floats"),
        (JaxmixError, "tokens go from 0 to 23, expected 0 to 22. Do they come from", "beyond"),
        (JaxmixError, "tokens go from -1 to 22", "below"),
        (
            ShapeError,
            r"mask is bool with shape \(2, 8\), expected bool with the shape of the tokens",
            "mask",
        ),
        (ShapeError, r"mask is int32 with shape \(2, 9\), expected bool", "number mask"),
        (JaxmixError, "mask has padding after a token, expected it on the left", "right"),
        (JaxmixError, "mask has a row without tokens", "nothing"),
        (JaxmixError, "max_new_tokens is 0, expected at least 1", {"max_new_tokens": 0}),
        (JaxmixError, "top_k is 0, expected at least 1, or None", {"top_k": 0}),
        (
            JaxmixError,
            "temperature is -0.5, expected a number of at least 0",
            {"temperature": -0.5},
        ),
        (JaxmixError, "temperature is nan", {"temperature": float("nan")}),
        (JaxmixError, "sampling needs a key. Pass key=jax.random.key", {"temperature": 1.0}),
    ],
)
def test_invalid_arguments_are_refused(error: type[Exception], message: str, changes: Any) -> None:
    tokens, mask = np.array(tiny.tokens()), np.ones((2, 9), bool)
    tokens[0, :2] = 0, 22
    beyond, below, right, nothing = tokens.copy(), tokens.copy(), mask.copy(), mask.copy()
    beyond[1, 1], below[1, 1], right[1, 8], nothing[1] = 23, -1, False, False
    invalid: dict[str, dict[str, Any]] = {
        "flat": {"tokens": tokens[0]},
        "empty": {"tokens": tokens[:, :0]},
        "floats": {"tokens": tokens.astype(np.float32)},
        "beyond": {"tokens": beyond},
        "below": {"tokens": below},
        "mask": {"mask": mask[:, 1:]},
        "number mask": {"mask": mask.astype(np.int32)},
        "right": {"mask": right},
        "nothing": {"mask": nothing},
    }
    changed = invalid[changes] if isinstance(changes, str) else changes
    arrays = jax.tree.map(lambda x: jnp.asarray(x) if isinstance(x, np.ndarray) else x, changed)
    arguments = {"tokens": jnp.asarray(tokens), "max_new_tokens": 2, **arrays}
    with pytest.raises(error, match=message):
        generate(model=tiny.model(), **arguments)
