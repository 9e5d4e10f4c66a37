"""The empty cache of a model."""

import jax
import jax.numpy as jnp

from jaxmix.models import Cache

from . import tiny


def test_a_cache_has_slots_for_the_key_and_value_heads_of_each_layer() -> None:
    """Not for the query heads, of which a group shares each; GPT-2 has as many of both."""
    with jax.enable_x64(True):
        decoder = Cache.empty(tiny.config("llama"), 3, 5, jnp.bfloat16)
        gpt2 = Cache.empty(tiny.config("gpt2"), 3, 5, jnp.bfloat16)
    assert [layer.shape for layer in decoder.keys] == [(3, 2, 5, 4)] * 2
    assert [layer.shape for layer in gpt2.values] == [(3, 3, 5, 4)] * 2
    assert {x.dtype for x in (*decoder.keys, *decoder.values)} == {jnp.dtype(jnp.bfloat16)}


def test_an_empty_cache_has_nothing_to_see() -> None:
    """Its length is int32 in any mode, so that a step's new cache fits into a loop."""
    with jax.enable_x64(True):
        cache = Cache.empty(tiny.config(), 1, 4, jnp.float64)
    assert cache.length.dtype == jnp.int32 and int(cache.length) == 0
    assert cache.visible.shape == (1, 4) and not cache.visible.any()
    assert not any(x.any() for x in (*cache.keys, *cache.values))
