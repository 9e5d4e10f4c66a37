"""Generation: the choice of tokens, the end of a sequence, and the number of compilations."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxmix.errors import JaxmixError, ShapeError
from jaxmix.models import generate, to_torch
from jaxmix.models.decoder import Backbone

from ..messages import full_text
from . import tiny


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_greedy_takes_the_likeliest_token(kind: str) -> None:
    """Each token is the likeliest of a forward pass over the whole sequence."""
    model, tokens = tiny.model(kind), tiny.tokens()
    generated = generate(model, tokens, max_new_tokens=6)
    assert generated.dtype == jnp.int32
    np.testing.assert_array_equal(generated[:, :9], tokens)
    likeliest = jnp.argmax(tiny.run(model, generated), axis=-1)
    np.testing.assert_array_equal(generated[:, 9:], likeliest[:, 8:-1])


def test_draws_depend_on_the_key() -> None:
    """Equal keys draw equal tokens; with one candidate the likeliest token is drawn."""
    model, tokens = tiny.model(), tiny.tokens()

    def draw(seed: int, **sampling: Any) -> np.ndarray:
        key = jax.random.key(seed)
        return np.asarray(generate(model, tokens, max_new_tokens=6, key=key, **sampling))

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
    sampling = {"temperature": 0.25, "top_k": 5, "key": jax.random.key(3)}
    draws = generate(model, tokens, max_new_tokens=1, **sampling)[:, -1]
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
    sampling = {"temperature": 1.0, "key": jax.random.key(0)}
    generated = generate(model, tiny.tokens(), max_new_tokens=6, **sampling)[:, 9:]
    assert np.any(generated[0] != generated[1])
    assert len({tuple(column) for column in generated.T.tolist()}) > 4


def test_ended_rows_are_padded() -> None:
    """An ended row is padded; the other rows continue unchanged."""
    tokens = tiny.tokens()
    without_ends = np.asarray(generate(tiny.model(), tokens, max_new_tokens=6))[:, 9:]
    first_eos, other_eos = int(without_ends[0, 2]), int(without_ends[1, 1])
    end_fields = {"eos_token_id": first_eos, "pad_token_id": 22}
    cases: tuple[tuple[dict[str, Any], list[int] | None, int, int], ...] = (
        ({}, [first_eos], first_eos, first_eos),
        (end_fields, None, first_eos, 22),
        (end_fields, [other_eos], other_eos, 22),
    )
    for fields, eos_token_ids, eos, pad in cases:
        model = tiny.model("llama", **fields)
        generated = np.asarray(
            generate(model, tokens, max_new_tokens=6, eos_token_ids=eos_token_ids)
        )[:, 9:]
        for row, continuation in zip(generated, without_ends, strict=True):
            ends_at = np.flatnonzero(continuation == eos)
            length = ends_at[0] + 1 if len(ends_at) else 6
            np.testing.assert_array_equal(row[:length], continuation[:length])
            assert np.all(row[length:] == pad)


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_left_padding_has_no_effect(kind: str) -> None:
    """A padded row continues like the same tokens without padding."""
    model, tokens = tiny.model(kind), tiny.tokens()
    mask = jnp.arange(9)[None, :] >= jnp.array([[0], [4]])
    padded = generate(model, tokens, max_new_tokens=6, mask=mask)
    likeliest = np.argmax(tiny.run(model, padded[1:, 4:]), axis=-1)
    np.testing.assert_array_equal(padded[1, 9:], likeliest[0, 4:-1])
    alone = generate(model, tokens, max_new_tokens=6)
    np.testing.assert_array_equal(padded[0], alone[0])
    assert np.any(padded[1] != alone[1])


def test_each_structure_is_traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """New weights, keys, temperatures and end tokens do not retrace the prompt or the step."""
    traces = []
    original_call = Backbone.__call__

    def recording_call(self: Backbone, tokens: jax.Array, *rest: Any) -> Any:
        traces.append(tokens.shape)
        return original_call(self, tokens, *rest)

    monkeypatch.setattr(Backbone, "__call__", recording_call)
    tokens = tiny.tokens(count=7)
    for seed in range(3):
        key = jax.random.key(seed)
        graph, state = nnx.split(tiny.model(seed=seed))
        model = nnx.merge(graph, jax.tree.map(lambda leaf: 2 * leaf, state))
        sampling = {"temperature": 0.5 + seed, "key": key, "eos_token_ids": [seed]}
        generate(model, tokens, max_new_tokens=3, **sampling)
    assert traces == [(2, 7), (2, 1)]


def test_prompts_and_weights_of_other_dtypes() -> None:
    """Prompts of bytes, 64-bit models and bfloat16 weights work."""
    model, tokens = tiny.model(), tiny.tokens()
    greedy = generate(model, tokens, max_new_tokens=6)
    generated = generate(model, tokens.astype(jnp.uint8), max_new_tokens=6)
    np.testing.assert_array_equal(generated, greedy)
    sampling = {"temperature": 0.5, "top_k": 3, "key": jax.random.key(0)}
    with jax.enable_x64(True):
        model64 = tiny.model(dtype=np.float64)
        generated = generate(model64, tokens.astype(jnp.int64), max_new_tokens=6, **sampling)
        assert generated.dtype == jnp.int32
    model16 = tiny.model(dtype=jnp.bfloat16)
    assert (
        generated.shape == generate(model16, tokens, max_new_tokens=6, **sampling).shape == (2, 15)
    )


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
            (
                "tokens are int32 with shape (9,), expected integers with shape "
                "(rows, tokens) and at least one token. For a single text use "
                "tokens[None]."
            ),
            "flat",
        ),
        (
            ShapeError,
            (
                "tokens are int32 with shape (2, 0), expected integers with "
                "shape (rows, tokens) and at least one token. For a single text "
                "use tokens[None]."
            ),
            "empty",
        ),
        (
            ShapeError,
            (
                "tokens are float32 with shape (2, 9), expected integers with "
                "shape (rows, tokens) and at least one token. For a single text "
                "use tokens[None]."
            ),
            "floats",
        ),
        (
            JaxmixError,
            (
                "tokens go from 0 to 23, expected 0 to 22. Do they come from the "
                "tokenizer of another model?"
            ),
            "beyond",
        ),
        (
            JaxmixError,
            (
                "tokens go from -1 to 22, expected 0 to 22. Do they come from "
                "the tokenizer of another model?"
            ),
            "below",
        ),
        (
            ShapeError,
            ("mask is bool with shape (2, 8), expected bool with the shape of the tokens (2, 9)."),
            "mask",
        ),
        (
            ShapeError,
            ("mask is int32 with shape (2, 9), expected bool with the shape of the tokens (2, 9)."),
            "number mask",
        ),
        (
            JaxmixError,
            ("mask has padding after a token, expected it on the left of each row."),
            "right",
        ),
        (
            JaxmixError,
            ("mask has a row without tokens, expected at least one in each row."),
            "nothing",
        ),
        (JaxmixError, "max_new_tokens is 0, expected at least 1.", {"max_new_tokens": 0}),
        (JaxmixError, "top_k is 0, expected at least 1, or None for all tokens.", {"top_k": 0}),
        (
            JaxmixError,
            "temperature is -0.5, expected a number of at least 0.",
            {"temperature": -0.5},
        ),
        (
            JaxmixError,
            "temperature is nan, expected a number of at least 0.",
            {"temperature": float("nan")},
        ),
        (
            JaxmixError,
            (
                "sampling needs a key. Pass key=jax.random.key(0), or "
                "temperature=0 for the most likely token."
            ),
            {"temperature": 1.0},
        ),
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
    with pytest.raises(error, match=full_text(message)):
        generate(model=tiny.model(), **arguments)
