"""Causal masks, the positions of tokens, and calls that do not fit the cache."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix.errors import ShapeError
from jaxmix.models import Cache
from jaxmix.models.causal import Context

from ..messages import full_text
from . import tiny

pytestmark = pytest.mark.usefixtures("no_compiling")


def test_without_a_cache_tokens_see_those_before_them() -> None:
    """Up to the window, which includes the token itself."""
    context = Context.of(jnp.ones((2, 4), jnp.int32), None, None)
    np.testing.assert_array_equal(context.positions, [[0, 1, 2, 3]] * 2)
    order = np.arange(4)
    back = order[:, None] - order[None]
    np.testing.assert_array_equal(context.mask(), [back >= 0] * 2)
    for window in (1, 3, 9):
        np.testing.assert_array_equal(context.mask(window), [(back >= 0) & (back < window)] * 2)


def test_no_token_sees_padding() -> None:
    """The mask follows the order of tokens, not their positions."""
    positions = jnp.array([[-1, -7, 0, 1], [0, 1, 2, -1]], jnp.int32)
    mask = Context.of(jnp.ones((2, 4), jnp.int32), positions, None).mask()
    assert mask[0].tolist() == [
        [False, False, False, False],
        [False, False, False, False],
        [False, False, True, False],
        [False, False, True, True],
    ]
    assert mask[1].sum(1).tolist() == [1, 2, 3, 3]


def test_tokens_go_on_where_the_cache_ends() -> None:
    """They see its visible slots, and free slots are not seen; the given cache stays as it is."""
    cache = Cache.empty(tiny.config(), 1, 6, jnp.float32)
    first = jnp.ones((1, 3), jnp.int32)
    context = Context.of(first, jnp.array([[-1, 0, 1]], jnp.int32), cache)
    new = jnp.ones((1, 2, 3, 4))
    _, cache = context.through(new[:, 0], [lambda x, past: (x, past[:2])] * 2)
    assert cache is not None and int(cache.length) == 3
    assert cache.visible.tolist() == [[False, True, True, False, False, False]]
    after = Context.of(jnp.ones((1, 2), jnp.int32), None, cache)
    assert after.positions.tolist() == [[3, 4]] and after.slots.tolist() == [3, 4]
    assert after.mask()[0].tolist() == [
        [False, True, True, True, False, False],
        [False, True, True, True, True, False],
    ]
    assert after.mask(2)[0, 1].tolist() == [False, False, False, True, True, False]
    assert context.cache is not None and int(context.cache.length) == 0


def test_invalid_arguments_are_refused() -> None:
    model, tokens = tiny.model(), tiny.tokens()
    for wrong in (tokens[0], tokens.astype(jnp.float32)):
        message = (
            f"tokens are {wrong.dtype} with shape {wrong.shape}, expected integers with shape "
            "(rows, tokens). For a single text use tokens[None]."
        )
        with pytest.raises(ShapeError, match=full_text(message)):
            model(wrong)
    message = "positions: the shape is (9,), expected that of the tokens (2, 9)."
    with pytest.raises(ShapeError, match=full_text(message)):
        model(tokens, positions=jnp.arange(9))
    empty = Cache.empty(model.config, 2, 8, jnp.float32)
    _, cache = model(tokens, cache=Cache.empty(model.config, 2, 10, jnp.float32))
    for given, past, found in (
        (tokens, empty, "2 rows with 8 of 8 slots free"),
        (tokens[:, :2], cache, "2 rows with 1 of 10 slots free"),
        (tokens[:1, :1], cache, "2 rows with 1 of 10 slots free"),
    ):
        message = (
            f"tokens have shape {given.shape}, but the cache has {found}. Make one with "
            "Cache.empty(config, rows, slots, dtype)."
        )
        with pytest.raises(ShapeError, match=full_text(message)):
            model(given, cache=past)
