"""Generation: the prompt at once, then token by token with a cache, in one compiled function."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Integer, Key

from jaxmix.errors import JaxmixError, ShapeError
from jaxmix.models.cache import Cache
from jaxmix.models.causal import CausalLM

__all__ = ["generate"]


def generate(
    model: CausalLM,
    tokens: Integer[Array, "b t"],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    key: Key[Array, ""] | None = None,
    mask: Bool[Array, "b t"] | None = None,
    eos_token_ids: Sequence[int] | None = None,
) -> Int[Array, "b m"]:
    """Continues texts: each token is drawn from ``softmax(logits / temperature)``.

    Compiled once for models of one structure and tokens of one shape; weights, key, temperature and
    end tokens may change without another trace.

    Args:
        model: a `Decoder` or a `GPT2`.
        tokens: the prompts, one a row. Shorter ones are padded on the left, see ``mask``.
        max_new_tokens: n, how many tokens to add at most.
        temperature: 0 takes the likeliest token each time.
        top_k: draw from the k likeliest tokens only.
        key: for drawing; needed if the temperature is not 0.
        mask: which tokens are no padding; all by default.
        eos_token_ids: the tokens that end a row; the config's by default, () for none. All that
            follows one is ``config.pad_token_id``, or the first of these.

    Returns:
        The prompts and what follows (b, t + n), int32.

    Raises:
        JaxmixError: if an argument makes no sense, or a key is missing.
        ShapeError: if tokens are not (b, t) whole numbers of at least one column, or the mask is
            not like them.

    Example:
        >>> import jax
        >>> from jaxmix.models import Decoder, read_config
        >>> config = read_config(
        ...     dict(model_type="llama", vocab_size=11, hidden_size=8, intermediate_size=12)
        ...     | dict(num_hidden_layers=2, num_attention_heads=4)
        ... )
        >>> model = Decoder(config, dtype=jnp.float32, rngs=nnx.Rngs(0))
        >>> prompt = jnp.array([[1, 2, 3]])
        >>> generate(model, prompt, max_new_tokens=4, temperature=0.8, key=jax.random.key(0)).shape
        (1, 7)

    Source: ``transformers.GenerationMixin.generate``, whose greedy tokens these are.
    """
    _check(model, tokens, max_new_tokens, temperature, top_k, key, mask)
    config = model.config
    ends = config.eos_token_ids if eos_token_ids is None else tuple(eos_token_ids)
    pad = config.pad_token_id if config.pad_token_id is not None else next(iter(ends), 0)
    sampled = temperature > 0
    tokens = jnp.asarray(tokens, jnp.int32)
    graph, state = nnx.split(model)
    new = _generate(
        graph,
        state,
        tokens,
        jnp.ones(tokens.shape, bool) if mask is None else mask,
        key if sampled else None,
        jnp.float32(temperature),
        jnp.asarray(np.asarray(ends, np.int32)),
        jnp.int32(pad),
        steps=max_new_tokens,
        top_k=min(top_k, config.vocab_size) if sampled and top_k is not None else None,
    )
    return jnp.concatenate([tokens, new], axis=1)


@partial(jax.jit, static_argnames=("graph", "steps", "top_k"))
def _generate(
    graph: nnx.GraphDef[CausalLM],
    state: Any,
    tokens: Int[Array, "b t"],
    mask: Bool[Array, "b t"],
    key: Key[Array, ""] | None,
    temperature: Float[Array, ""],
    ends: Int[Array, " e"],
    pad: Int[Array, ""],
    *,
    steps: int,
    top_k: int | None,
) -> Int[Array, "b n"]:
    """The new tokens. A function of the module, so that one program serves all equal models."""
    model = nnx.merge(graph, state)
    rows, count = tokens.shape

    def choose(logits: Float[Array, "b V"], step: Array) -> Int[Array, " b"]:
        if key is None:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        return _draw(logits, jax.random.fold_in(key, step), temperature, top_k)

    def run(tokens: Array, positions: Array, cache: Cache) -> tuple[Array, Cache]:
        """The logits of the last token only: a prompt's others are not needed."""
        hidden, after = model.hidden(tokens, positions=positions, cache=cache)
        assert after is not None
        return model.logits(hidden[:, -1:])[:, 0], after

    def going_on(carry: tuple[Any, ...]) -> Array:
        step, *_, ended = carry
        return (step < steps) & ~jnp.all(ended)

    def go_on(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        step, last, new, cache, ended = carry
        logits, cache = run(last[:, None], (lengths + step - 1)[:, None], cache)
        last = jnp.where(ended, pad, choose(logits, step))
        ended = ended | jnp.isin(last, ends)
        return step + 1, last, new.at[:, step].set(last), cache, ended

    # Padding stands at -1, which nobody sees; the text that follows it starts at 0.
    places = jnp.cumsum(mask, axis=1, dtype=jnp.int32)
    lengths = places[:, -1]
    cache = Cache.empty(model.config, rows, count + steps, model.dtype)
    logits, cache = run(tokens, jnp.where(mask, places - 1, -1), cache)
    first = choose(logits, jnp.int32(0))
    new = jnp.full((rows, steps), pad, jnp.int32).at[:, 0].set(first)
    carry = (jnp.int32(1), first, new, cache, jnp.isin(first, ends))
    return jax.lax.while_loop(going_on, go_on, carry)[2]


def _draw(
    logits: Float[Array, "b V"],
    key: Key[Array, ""],
    temperature: Float[Array, ""],
    top_k: int | None,
) -> Int[Array, " b"]:
    """A token of each row by its probability, among the likeliest only if ``top_k`` says so."""
    scaled = logits.astype(jnp.float32) / temperature
    if top_k is not None:
        least = jax.lax.top_k(scaled, top_k)[0][:, -1:]
        scaled = jnp.where(scaled < least, -jnp.inf, scaled)
    return jax.random.categorical(key, scaled).astype(jnp.int32)


def _check(
    model: CausalLM,
    tokens: Array,
    steps: int,
    temperature: float,
    top_k: int | None,
    key: Any,
    mask: Array | None,
) -> None:
    """Whether the arguments make sense, before anything is compiled."""
    if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer) or not tokens.shape[1]:
        raise ShapeError(
            f"tokens are {tokens.dtype} {tokens.shape}, expected whole numbers of shape (rows, "
            "tokens), with at least one token. One text is tokens[None]."
        )
    if mask is not None and (mask.shape != tokens.shape or mask.dtype != bool):
        raise ShapeError(
            f"mask is {mask.dtype} {mask.shape}, expected bool of the tokens' shape {tokens.shape}."
        )
    if mask is not None and not np.all(np.sort(mask, axis=1) == mask):
        raise JaxmixError("mask has padding after a token, expected it on the left of each row.")
    if mask is not None and not np.all(np.any(mask, axis=1)):
        raise JaxmixError("mask has a row without a token, expected at least one in each.")
    size = model.config.vocab_size
    if np.any((np.asarray(tokens) < 0) | (np.asarray(tokens) >= size)):
        raise JaxmixError(
            f"tokens go from {np.min(tokens)} to {np.max(tokens)}, expected 0 to {size - 1}. Is it "
            "another model's tokenizer?"
        )
    if steps < 1:
        raise JaxmixError(f"max_new_tokens is {steps}, expected at least 1.")
    # The last new token is never looked at.
    count = tokens.shape[1] if mask is None else int(np.max(np.sum(mask, axis=1)))
    if model.longest is not None and count + steps - 1 > model.longest:
        raise JaxmixError(
            f"a prompt of {count} tokens and {steps} new ones need {count + steps - 1} positions, "
            f"but the model has learned {model.longest}. Cut the prompt, or ask for fewer."
        )
    if top_k is not None and top_k < 1:
        raise JaxmixError(f"top_k is {top_k}, expected at least 1, or None for all tokens.")
    if not 0 <= temperature < float("inf"):
        raise JaxmixError(f"temperature is {temperature}, expected a number of at least 0.")
    if temperature > 0 and key is None:
        raise JaxmixError(
            "drawing needs a key: say key=jax.random.key(0), or temperature=0 for the likeliest "
            "token."
        )
