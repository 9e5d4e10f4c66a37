"""Single layers against NumPy: attention of grouped heads, norms, and the cache's slots."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxmix.models.layers import Embed, LayerNorm, Linear, RMSNorm, attend, heads_of, remember

from . import tiny

pytestmark = pytest.mark.usefixtures("no_compiling")


def normal(*shape: int) -> Any:
    return jnp.asarray(np.random.default_rng(shape).normal(size=shape), jnp.float32)


def test_neighbouring_query_heads_share_a_key_head() -> None:
    """Heads 0, 1 and 2 attend with keys 0; a token sees only the slots of its mask."""
    q, keys, values = normal(1, 3, 6, 4), normal(1, 2, 5, 4), normal(1, 2, 5, 4)
    mask = jnp.asarray(np.tri(3, 5, 1, dtype=bool)[None])
    actual = heads_of(attend(q, keys, values, mask, 0.5), 4)
    for head in range(6):
        scores = 0.5 * np.asarray(q)[0, :, head] @ np.asarray(keys)[0, head // 3].T
        weights = np.where(mask[0], np.exp(scores), 0)
        weights /= weights.sum(1, keepdims=True)
        expected = weights @ np.asarray(values)[0, head // 3]
        np.testing.assert_allclose(actual[0, :, head], expected, rtol=1e-5, atol=1e-6)


def test_a_token_that_sees_nothing_is_finite() -> None:
    """Padding has no slot to attend to, and NaN would spread through its row's products."""
    q, keys, values = normal(1, 1, 2, 4), normal(1, 2, 5, 4), normal(1, 2, 5, 4)
    out = attend(q, keys, values, jnp.zeros((1, 1, 5), bool), 0.5)
    np.testing.assert_allclose(out[0, 0, :4], np.asarray(values)[0, 0].mean(0), rtol=1e-5)


def test_new_keys_enter_the_first_free_slots() -> None:
    """All rows at once; without a cache they are all there is."""
    keys, values, new = normal(2, 3, 6, 4), normal(2, 3, 6, 4), normal(2, 3, 2, 4)
    all_keys, all_values = remember((keys, values, jnp.int32(3)), new, -new)
    np.testing.assert_array_equal(all_keys[:, :, 3:5], new)
    np.testing.assert_array_equal(all_values[:, :, 3:5], -new)
    kept = np.delete(np.asarray(all_keys), [3, 4], 2)
    np.testing.assert_array_equal(kept, np.delete(np.asarray(keys), [3, 4], 2))
    assert remember(None, new, -new)[0] is new


@pytest.mark.parametrize("kind", ["llama", "gemma"])
def test_rms_norm_rounds_as_transformers_does(kind: str) -> None:
    """Llama rounds before the product with the weight, Gemma after that with 1 + w."""
    config = tiny.config(kind)
    norm = RMSNorm(7, config, jnp.float32)
    w = np.asarray(normal(7))
    norm.scale[...] = jnp.asarray(w)
    x = normal(2, 3, 7).astype(jnp.bfloat16)
    wide = np.asarray(x, np.float32)
    y = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + config.rms_norm_eps)
    bf16 = jnp.bfloat16
    expected = (y * (1 + w)).astype(bf16) if kind == "gemma" else y.astype(bf16) * w.astype(bf16)
    assert norm(x).dtype == bf16
    np.testing.assert_array_equal(np.asarray(norm(x)), expected)


def test_layer_norm_subtracts_the_mean() -> None:
    norm, x = LayerNorm(7, 1e-2, jnp.float32), normal(2, 3, 7)
    w = np.asarray(normal(7))
    norm.scale[...], norm.bias[...] = jnp.asarray(w), jnp.asarray(3 + w)
    wide = np.asarray(x, np.float64)
    centered = wide - wide.mean(-1, keepdims=True)
    expected = centered / np.sqrt(wide.var(-1, keepdims=True) + 1e-2) * w + 3 + w
    np.testing.assert_allclose(norm(x), expected, rtol=1e-4, atol=1e-5)


def test_weights_are_cast_to_the_activations() -> None:
    """A product and a tied head have the dtype of x, and an embedding keeps its own."""
    linear, embed = (
        Linear(7, 5, True, jnp.float32, nnx.Rngs(0)),
        Embed(9, 7, jnp.bfloat16, nnx.Rngs(0), 7**0.5),
    )
    linear.bias[...] = normal(5)  # pyright: ignore[reportOptionalSubscript]
    x = normal(1, 2, 7).astype(jnp.bfloat16)
    assert linear(x).dtype == embed.attend(x).dtype == jnp.bfloat16
    assert embed.attend(x).shape == (1, 2, 9)
    wide = linear(x.astype(jnp.float32))
    np.testing.assert_allclose(np.asarray(linear(x), np.float32), wide, atol=0.05)
    rows = embed(jnp.array([[8, 9]], jnp.int32))
    expected = np.asarray(embed.embedding[...])[8] * jnp.bfloat16(7**0.5)
    np.testing.assert_array_equal(np.asarray(rows[0, 0]), expected)
    assert rows.dtype == jnp.bfloat16 and np.isnan(np.asarray(rows[0, 1], np.float32)).all()
