"""`generate`: generates text with a cache, in one compiled function."""

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
    """Generates text: draws each next token from ``softmax(logits / temperature)``.

    It is compiled once for each model structure and each shape of tokens. Weights, key, temperature
    and end tokens may change without another trace.

    Args:
        model: A `Decoder` or a `GPT2`.
        tokens: The prompts, one per row. Shorter prompts are padded on the left, see ``mask``.
        max_new_tokens: The maximal number n of new tokens.
        temperature: The temperature; 0 always takes the most likely token.
        top_k: If given, draw only from the k most likely tokens.
        key: A PRNG key, required unless the temperature is 0.
        mask: Which tokens are not padding; by default all.
        eos_token_ids: The tokens that end a row; by default those of the config, () for none.
            Tokens after the end are ``config.pad_token_id``, or the first of these.

    Returns:
        The prompts and the new tokens (b, t + n), int32.

    Raises:
        JaxmixError: If an argument is invalid, or a key is missing.
        ShapeError: If the tokens are not integers (b, t) with at least one column, or the mask does
            not have their shape.

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

    Source: ``transformers.GenerationMixin.generate``, which gives the same greedy tokens.
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
    """Returns the new tokens. It is a module-level function, so equal models share one program."""
    model = nnx.merge(graph, state)
    rows, count = tokens.shape

    def choose(logits: Float[Array, "b V"], step: Array) -> Int[Array, " b"]:
        if key is None:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        return _draw(logits, jax.random.fold_in(key, step), temperature, top_k)

    def run(tokens: Array, positions: Array, cache: Cache) -> tuple[Array, Cache]:
        """Returns the logits of the last token only, and the new cache."""
        hidden, after = model.hidden(tokens, positions=positions, cache=cache)
        assert after is not None
        return model.logits(hidden[:, -1:])[:, 0], after

    def is_running(carry: tuple[Any, ...]) -> Array:
        step, *_, ended = carry
        return (step < steps) & ~jnp.all(ended)

    def add_token(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        step, last, new, cache, ended = carry
        logits, cache = run(last[:, None], (lengths + step - 1)[:, None], cache)
        last = jnp.where(ended, pad, choose(logits, step))
        ended = ended | jnp.isin(last, ends)
        return step + 1, last, new.at[:, step].set(last), cache, ended

    # Padding has position -1, which no token attends to; the text after it starts at 0.
    counts = jnp.cumsum(mask, axis=1, dtype=jnp.int32)
    lengths = counts[:, -1]
    cache = Cache.empty(model.config, rows, count + steps, model.dtype)
    logits, cache = run(tokens, jnp.where(mask, counts - 1, -1), cache)
    first = choose(logits, jnp.int32(0))
    new = jnp.full((rows, steps), pad, jnp.int32).at[:, 0].set(first)
    carry = (jnp.int32(1), first, new, cache, jnp.isin(first, ends))
    return jax.lax.while_loop(is_running, add_token, carry)[2]


def _draw(
    logits: Float[Array, "b V"],
    key: Key[Array, ""],
    temperature: Float[Array, ""],
    top_k: int | None,
) -> Int[Array, " b"]:
    """Draws a token for each row, from the ``top_k`` most likely ones if it is given."""
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
    """Checks the arguments before anything is compiled."""
    if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer) or not tokens.shape[1]:
        raise ShapeError(
            f"tokens are {tokens.dtype} with shape {tokens.shape}, expected integers with shape "
            "(rows, tokens) and at least one token. For a single text use tokens[None]."
        )
    if mask is not None and (mask.shape != tokens.shape or mask.dtype != bool):
        raise ShapeError(
            f"mask is {mask.dtype} with shape {mask.shape}, expected bool with the shape of the "
            f"tokens {tokens.shape}."
        )
    if mask is not None and not np.all(np.sort(mask, axis=1) == mask):
        raise JaxmixError("mask has padding after a token, expected it on the left of each row.")
    if mask is not None and not np.all(np.any(mask, axis=1)):
        raise JaxmixError("mask has a row without tokens, expected at least one in each row.")
    size = model.config.vocab_size
    if np.any((np.asarray(tokens) < 0) | (np.asarray(tokens) >= size)):
        raise JaxmixError(
            f"tokens go from {np.min(tokens)} to {np.max(tokens)}, expected 0 to {size - 1}. Do "
            "they come from the tokenizer of another model?"
        )
    if steps < 1:
        raise JaxmixError(f"max_new_tokens is {steps}, expected at least 1.")
    # The last new token is not fed to the model.
    count = tokens.shape[1] if mask is None else int(np.max(np.sum(mask, axis=1)))
    if model.longest is not None and count + steps - 1 > model.longest:
        raise JaxmixError(
            f"a prompt of {count} tokens and {steps} new tokens need {count + steps - 1} "
            f"positions, but the model has {model.longest}. Truncate the prompt, or request fewer "
            "new tokens."
        )
    if top_k is not None and top_k < 1:
        raise JaxmixError(f"top_k is {top_k}, expected at least 1, or None for all tokens.")
    if not 0 <= temperature < float("inf"):
        raise JaxmixError(f"temperature is {temperature}, expected a number of at least 0.")
    if temperature > 0 and key is None:
        raise JaxmixError(
            "sampling needs a key. Pass key=jax.random.key(0), or temperature=0 for the most "
            "likely token."
        )
