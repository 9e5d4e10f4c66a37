"""The decoder: its tree, cache, attention and errors."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxmix.models import Cache, Decoder, from_torch, to_torch

from . import tiny


def names(model: Decoder) -> set[str]:
    """Returns the paths of the leaves."""
    return {".".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(model))}


def test_tree_has_hugging_face_names() -> None:
    """The leaves are exactly Hugging Face's, with the biases that the config enables."""
    attention = [f"self_attn.{p}_proj.{leaf}" for p in "qkvo" for leaf in ("kernel", "bias")]
    mlp = [f"mlp.{p}_proj.{leaf}" for p in ("gate", "up", "down") for leaf in ("kernel", "bias")]
    norms = ["input_layernorm.scale", "post_attention_layernorm.scale"]
    layers = {f"model.layers.{i}.{leaf}" for i in (0, 1) for leaf in (*attention, *mlp, *norms)}
    outer_leaves = {"model.embed_tokens.embedding", "model.norm.scale", "lm_head.kernel"}
    assert names(tiny.model("llama")) == layers | outer_leaves
    without_biases = {name for name in layers if "bias" not in name}
    norms_of_heads = {f"model.layers.{i}.self_attn.{p}_norm.scale" for i in (0, 1) for p in "qk"}
    assert names(tiny.model("qwen3")) == without_biases | norms_of_heads | outer_leaves - {
        "lm_head.kernel"
    }
    biases = {f"model.layers.{i}.self_attn.{p}_proj.bias" for i in (0, 1) for p in "qkv"}
    assert names(tiny.model("qwen2")) == without_biases | biases | outer_leaves
    assert names(tiny.model("mistral")) == without_biases | outer_leaves


def test_split_and_merge() -> None:
    model, tokens = tiny.model(), tiny.tokens()
    graph, state = nnx.split(model)
    assert state["model"]["layers"][1]["self_attn"]["q_proj"]["kernel"].shape == (12, 24)
    np.testing.assert_array_equal(
        tiny.run(nnx.merge(graph, state), tokens), tiny.run(model, tokens)
    )
    assert nnx.split(tiny.model(seed=1))[0] == graph


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_cache_gives_the_same_logits(kind: str) -> None:
    """Tokens in three pieces, with unused slots, give the same logits in 64 bits."""
    with jax.enable_x64(True):
        model, tokens = tiny.model(kind, dtype=np.float64), tiny.tokens()
        step = nnx.jit(lambda model, tokens, cache: model(tokens, cache=cache))
        empty = cache = Cache.empty(model.config, 2, 11, model.dtype)
        outputs = []
        for tokens_of_step in jnp.split(tokens, 3, axis=1):
            logits, cache = step(model, tokens_of_step, cache)
            outputs.append(logits)
        expected = tiny.run(model, tokens)
        assert expected.dtype == jnp.float64
        np.testing.assert_allclose(
            jnp.concatenate(outputs, axis=1), expected, rtol=1e-11, atol=1e-11
        )
        assert int(cache.length) == 9
        assert not any(jnp.any(leaf) for leaf in jax.tree.leaves(empty))


def test_attention_is_causal() -> None:
    model, tokens = tiny.model(), tiny.tokens()
    changed = tokens.at[:, 6].set((tokens[:, 6] + 1) % 23)
    is_unchanged = np.all(
        np.asarray(tiny.run(model, tokens) == tiny.run(model, changed)), axis=(0, 2)
    )
    np.testing.assert_array_equal(is_unchanged, np.arange(9) < 6)


def test_window_limits_attention() -> None:
    """A layer with a window of three attends to a token and the two before it."""
    model = tiny.model("mistral", num_hidden_layers=1, sliding_window=3)
    tokens = tiny.tokens()
    changed = tokens.at[:, 2].set((tokens[:, 2] + 1) % 23)
    is_unchanged = np.all(
        np.asarray(tiny.run(model, tokens) == tiny.run(model, changed)), axis=(0, 2)
    )
    np.testing.assert_array_equal(np.flatnonzero(~is_unchanged), [2, 3, 4])


def test_padding_has_no_effect() -> None:
    """Tokens at negative positions do not change the logits of the tokens after them."""
    model, tokens = tiny.model("qwen3"), tiny.tokens()
    padded = tiny.run(model, tokens, jnp.broadcast_to(jnp.arange(-4, 5), (2, 9)))
    alone = tiny.run(model, tokens[:, 4:])
    np.testing.assert_allclose(padded[:, 4:], alone, rtol=1e-5, atol=1e-5)


def test_untied_model_has_its_own_head() -> None:
    """The untied model has the same logits and its own head; the tied model is unchanged."""
    tied, tokens = tiny.model("gemma"), tiny.tokens()
    tensors_before = to_torch(tied)
    untied = tied.untied()
    assert untied.config == replace(tied.config, tie_word_embeddings=False)
    assert names(untied) - names(tied) == {"lm_head.kernel"}
    np.testing.assert_allclose(
        tiny.run(untied, tokens), tiny.run(tied, tokens), rtol=1e-5, atol=1e-5
    )
    assert untied.untied() is untied
    untied.lm_head.kernel[...] = jnp.zeros_like(untied.lm_head.kernel[...])
    assert not jnp.any(tiny.run(untied, tokens))
    assert to_torch(tied).keys() == tensors_before.keys()
    assert jnp.any(tiny.run(tied, tokens))


def test_activations_have_the_dtype_of_the_embedding() -> None:
    """Activations have the embedding's dtype, for any dtypes of other leaves."""
    config, tokens = tiny.config(), tiny.tokens()
    tensors = tiny.tensors(config)
    logits32 = np.asarray(tiny.run(from_torch(config, tensors), tokens))
    name = "model.embed_tokens.weight"
    model = from_torch(config, {**tensors, name: tensors[name].astype(jnp.bfloat16)})
    logits = tiny.run(model, tokens)
    assert model.dtype == logits.dtype == jnp.bfloat16
    distance = np.abs(np.asarray(logits, np.float32) - logits32).max()
    assert distance < 0.1 * np.abs(logits32).max()


def test_random_initialization() -> None:
    """Norms start as the identity, biases at 0, and each kernel has its own draws."""
    for kind, scale in (("llama", 1), ("gemma", 0)):
        model = Decoder(tiny.config(kind), dtype=jnp.float32, rngs=nnx.Rngs(0))
        leaves = to_torch(model)
        assert jnp.all(leaves["model.norm.weight"] == scale)
        kernels = [leaf for leaf in leaves.values() if leaf.ndim == 2]
        assert len({float(leaf[0, 0]) for leaf in kernels}) == len(kernels)
        std = jnp.std(jnp.concatenate([leaf.ravel() for leaf in kernels]))
        assert abs(float(std) - 0.02) < 0.001
        assert jnp.all(jnp.isfinite(tiny.run(model, tiny.tokens())))


def test_token_beyond_the_vocabulary_gives_nan() -> None:
    """An invalid token gives NaN, rather than another token's logits."""
    assert jnp.all(jnp.isnan(tiny.run(tiny.model(), jnp.full((2, 9), 23))))
