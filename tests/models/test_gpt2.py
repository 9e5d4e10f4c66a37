"""GPT-2: its tree, cache, config, files, errors, and adapters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxmix
from jaxmix.errors import CheckpointError, JaxmixError, ShapeError, UnsupportedError
from jaxmix.families import LoRA
from jaxmix.models import GPT2, Cache, from_torch, generate, read_config, to_torch

from ..messages import full_text
from . import tiny


def names(model: GPT2) -> set[str]:
    """Returns the paths of the leaves."""
    return {".".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(model))}


def test_tree_has_hugging_face_names() -> None:
    linear_layers = [
        f"{p}.{leaf}"
        for p in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
        for leaf in ("kernel", "bias")
    ]
    norms = [f"ln_{i}.{leaf}" for i in (1, 2) for leaf in ("scale", "bias")]
    layers = {f"transformer.h.{i}.{leaf}" for i in (0, 1) for leaf in (*linear_layers, *norms)}
    outer_leaves = {f"transformer.{leaf}" for leaf in ("wte.embedding", "wpe.embedding")}
    outer_leaves |= {"transformer.ln_f.scale", "transformer.ln_f.bias"}
    assert names(tiny.model("gpt2")) == layers | outer_leaves
    assert names(tiny.model("gpt2", tie_word_embeddings=False)) == layers | outer_leaves | {
        "lm_head.kernel"
    }


def test_kernel_is_the_weight_of_a_conv1d() -> None:
    """A kernel equals a Conv1D's weight, and the transposed weight of the head."""
    config = tiny.config("gpt2", tie_word_embeddings=False)
    tensors = tiny.tensors(config)
    model = from_torch(config, tensors)
    kernel = model.transformer.h[1].attn.c_attn.kernel[...]
    np.testing.assert_array_equal(kernel, tensors["transformer.h.1.attn.c_attn.weight"])
    np.testing.assert_array_equal(model.lm_head.kernel[...], tensors["lm_head.weight"].T)
    converted = to_torch(model)
    assert converted.keys() == tensors.keys()
    assert all(np.array_equal(converted[name], leaf) for name, leaf in tensors.items())


def test_cache_gives_the_same_logits() -> None:
    """Tokens in three pieces, with unused slots, give the same logits in 64 bits."""
    with jax.enable_x64(True):
        model, tokens = tiny.model("gpt2", dtype=np.float64), tiny.tokens()
        step = nnx.jit(lambda model, tokens, cache: model(tokens, cache=cache))
        cache, outputs = Cache.empty(model.config, 2, 11, model.dtype), []
        for tokens_of_step in jnp.split(tokens, 3, axis=1):
            logits, cache = step(model, tokens_of_step, cache)
            outputs.append(logits)
        expected = tiny.run(model, tokens)
        np.testing.assert_allclose(
            jnp.concatenate(outputs, axis=1), expected, rtol=1e-11, atol=1e-11
        )


def test_padding_has_no_effect() -> None:
    """Tokens at negative positions do not change the logits of the tokens after them."""
    model, tokens = tiny.model("gpt2"), tiny.tokens()
    positions = jnp.array([-99, -4, -1, -15, 0, 1, 2, 3, 4])
    padded = tiny.run(model, tokens, jnp.broadcast_to(positions, (2, 9)))
    alone = tiny.run(model, tokens[:, 4:])
    np.testing.assert_allclose(padded[:, 4:], alone, rtol=1e-5, atol=1e-5)


def test_position_beyond_the_table_is_refused_or_nan() -> None:
    """They raise an error if the shapes show them, and give NaN otherwise."""
    model, too_long = tiny.model("gpt2"), tiny.tokens(count=15)
    message = "tokens have shape (2, 15), but this GPT-2 has only 14 positions. Truncate the text."
    with pytest.raises(ShapeError, match=full_text(message)):
        model(too_long)
    logits = tiny.run(model, tiny.tokens(), jnp.broadcast_to(jnp.arange(6, 15), (2, 9)))
    assert np.isnan(logits).all()
    message = (
        "a prompt of 9 tokens and 7 new tokens need 15 positions, but the model has 14. Truncate "
        "the prompt, or request fewer new tokens."
    )
    with pytest.raises(JaxmixError, match=full_text(message)):
        generate(model, tiny.tokens(), max_new_tokens=7)
    assert generate(model, tiny.tokens(), max_new_tokens=6).shape == (2, 15)


@pytest.mark.parametrize("site", ["transformer.wte", "lm_head"])
def test_adapters_of_a_layer_and_the_tied_embedding(site: str) -> None:
    """An adapter of one side of the tied embedding unties it."""
    model, rng = tiny.model("gpt2"), np.random.default_rng(0)

    def lora(rows: int, columns: int) -> LoRA:
        a, b = rng.normal(size=(2, columns)), rng.normal(size=(rows, 2))
        return LoRA(a=a.astype(np.float32), b=b.astype(np.float32), scale=0.5)

    layer = "transformer.h.0.attn.c_attn"
    updates = {layer: lora(36, 12), site: lora(23, 12)}
    composed = jaxmix.compose(model, jaxmix.Adapter(updates))
    assert isinstance(composed, GPT2) and not composed.config.tie_word_embeddings
    before, after = to_torch(model.untied()), to_torch(composed)
    delta = {name: 0.5 * update.b @ update.a for name, update in updates.items()}
    delta[layer] = delta[layer].T
    for name, leaf in after.items():
        change = delta.get(name.removesuffix(".weight"), 0)
        np.testing.assert_allclose(leaf, before[name] + change, rtol=1e-5, atol=1e-5)


def test_names_in_published_files_are_accepted() -> None:
    """Names without the prefix, and masks, are accepted; two names for a tensor are refused."""
    config = tiny.config("gpt2")
    tensors = tiny.tensors(config)
    without_prefix = {name.removeprefix("transformer."): leaf for name, leaf in tensors.items()}
    masks = {"h.0.attn.bias": np.ones((1, 1, 14, 14)), "h.1.attn.masked_bias": np.float32(-1e4)}
    model = from_torch(
        config, {**without_prefix, **masks, "lm_head.weight": tensors["transformer.wte.weight"]}
    )
    np.testing.assert_array_equal(
        model.transformer.h[0].attn.c_attn.bias[...], tensors["transformer.h.0.attn.c_attn.bias"]
    )
    with pytest.raises(CheckpointError) as caught:
        from_torch(
            config, {**tensors, "wte.weight": without_prefix["wte.weight"], "score.weight": masks}
        )
    assert "unused: score.weight\n  duplicate: transformer.wte.weight and wte.weight" in str(
        caught.value
    )
    with pytest.raises(
        CheckpointError,
        match=full_text(
            "lm_head.weight differs from wte.weight, though the config "
            "ties them. Set tie_word_embeddings to false to use both."
        ),
    ):
        from_torch(config, {**without_prefix, "lm_head.weight": 2 * without_prefix["wte.weight"]})


def test_config_fields() -> None:
    config = tiny.config("gpt2", n_inner=None, eos_token_id=[3, 4], activation_function="relu")
    assert (config.hidden_size, config.intermediate_size, config.head_dim) == (12, 48, 4)
    assert (config.activation, config.eos_token_ids, config.layer_norm_eps) == (
        "relu",
        (3, 4),
        1e-5,
    )
    assert config.tie_word_embeddings and config.score_scales == (0.5, 0.5)
    by_layer = tiny.config("gpt2", scale_attn_by_inverse_layer_idx=True, scale_attn_weights=False)
    assert by_layer.score_scales == (1.0, 0.5)
    without_eos = {k: v for k, v in tiny.GPT2.items() if k != "eos_token_id"}
    assert (
        read_config(without_eos).eos_token_ids == (50256,)
        and read_config(without_eos).pad_token_id is None
    )


def test_invalid_config_fields_are_refused() -> None:
    with pytest.raises(UnsupportedError) as caught:
        tiny.config("gpt2", add_cross_attention=True, rope_theta=3.0, activation_function=["gelu"])
    message = str(caught.value)
    assert (
        "add_cross_attention = True: layers would attend to the hidden states of another" in message
    )
    assert "rope_theta = 3.0: not a field of gpt2 that this version of jaxmix knows" in message
    assert "activation_function = ['gelu']: expected one of silu, swish, gelu, " in message
    with pytest.raises(CheckpointError) as caught:
        tiny.config("gpt2", n_head=5, n_layer=None, layer_norm_epsilon="x")
    message = str(caught.value)
    assert "n_embd = 12 is not a multiple of n_head = 5\n" in message
    assert "n_layer is None, expected an integer of at least 1\n" in message
    assert "layer_norm_epsilon is 'x', expected a number of at least 0\n" in message
