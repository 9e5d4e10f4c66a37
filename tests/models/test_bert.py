"""BERT: its tree, padding, config, files, errors, and adapters."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxmix
from jaxmix.errors import CheckpointError, JaxmixError, ShapeError, UnsupportedError
from jaxmix.families import LoRA
from jaxmix.models import Bert, from_torch, sentence_embeddings, to_torch

from ..messages import full_text
from . import tiny


@nnx.jit
def run(model: Bert, tokens: Any, **inputs: Any) -> Any:
    """Returns the hidden states."""
    return model(tokens, **inputs)


def test_tree_has_hugging_face_names() -> None:
    model = tiny.model("bert")
    names = {".".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(model))}
    linear_layers = [f"attention.self.{p}" for p in ("query", "key", "value")]
    linear_layers += ["attention.output.dense", "intermediate.dense", "output.dense"]
    leaves = [f"{p}.{leaf}" for p in linear_layers for leaf in ("kernel", "bias")]
    norms = ("attention.output.LayerNorm", "output.LayerNorm")
    leaves += [f"{norm}.{leaf}" for norm in norms for leaf in ("scale", "bias")]
    layers = {f"encoder.layer.{i}.{leaf}" for i in (0, 1) for leaf in leaves}
    outer_leaves = {
        f"embeddings.{p}_embeddings.embedding" for p in ("word", "position", "token_type")
    }
    outer_leaves |= {"embeddings.LayerNorm.scale", "embeddings.LayerNorm.bias"}
    assert names == layers | outer_leaves | {"pooler.dense.kernel", "pooler.dense.bias"}


def test_padding_has_no_effect() -> None:
    """Hidden states do not depend on padding; tokens attend to later tokens."""
    model, tokens = tiny.model("bert", num_hidden_layers=1), tiny.tokens()
    mask = jnp.broadcast_to(jnp.arange(9) < 6, (2, 9))
    alone = run(model, tokens[:, :6])
    np.testing.assert_allclose(run(model, tokens, mask=mask)[:, :6], alone, rtol=1e-5, atol=1e-5)
    unmasked = run(model, tokens, mask=jnp.ones_like(mask))
    assert np.abs(unmasked[:, 0] - alone[:, 0]).max() > 1e-3


def test_sentence_embeddings_are_masked_means() -> None:
    """The mean is normalized to length 1; a row of padding gives 0 rather than NaN."""
    model, tokens = tiny.model("bert", num_hidden_layers=1), tiny.tokens(rows=3)
    mask = jnp.arange(9)[None] < jnp.array([[9], [4], [0]])
    vectors = np.asarray(nnx.jit(sentence_embeddings)(model, tokens, mask=mask))
    hidden = np.asarray(run(model, tokens, mask=mask))
    for i, count in enumerate((9, 4)):
        mean = hidden[i, :count].mean(axis=0)
        np.testing.assert_allclose(vectors[i], mean / np.linalg.norm(mean), rtol=1e-5, atol=1e-6)
    assert not vectors[2].any()


def test_adapters_of_a_layer_and_the_embedding() -> None:
    """BERT's embedding is not tied to a head, so an adapter can change it directly."""
    model, rng = tiny.model("bert"), np.random.default_rng(0)
    site = "encoder.layer.1.intermediate.dense"
    shapes = {site: (18, 12), "embeddings.word_embeddings": (23, 12)}
    updates = {}
    for name, (rows, columns) in shapes.items():
        a, b = rng.normal(size=(2, columns)), rng.normal(size=(rows, 2))
        updates[name] = LoRA(a=a.astype(np.float32), b=b.astype(np.float32), scale=0.5)
    out = jaxmix.compose(model, jaxmix.Adapter(updates))
    assert isinstance(out, Bert)
    before, after = to_torch(model), to_torch(out)
    for name, leaf in after.items():
        update = updates.get(name.removesuffix(".weight"))
        change = 0 if update is None else 0.5 * update.b @ update.a
        np.testing.assert_allclose(leaf, before[name] + change, rtol=1e-5, atol=1e-5)


def test_names_in_published_files_are_accepted() -> None:
    """Prefixes, buffers, old norm names and a missing pooler are accepted, other tensors not."""
    config = tiny.config("bert")
    tensors = tiny.tensors(config)
    in_old_names = {}
    for name, leaf in tensors.items():
        name = name.replace("LayerNorm.weight", "LayerNorm.gamma")
        in_old_names["bert." + name.replace("LayerNorm.bias", "LayerNorm.beta")] = leaf
    buffers = {"bert.embeddings.position_ids": np.arange(14)[None]}
    converted = to_torch(from_torch(config, {**in_old_names, **buffers}))
    assert converted.keys() == tensors.keys()
    assert all(np.array_equal(converted[name], leaf) for name, leaf in tensors.items())
    without_pooler = {name: leaf for name, leaf in tensors.items() if not name.startswith("pooler")}
    model = from_torch(config, without_pooler)
    assert not model.config.pooler and to_torch(model).keys() == without_pooler.keys()
    with pytest.raises(
        JaxmixError,
        match=full_text(
            "this BERT has no pooler, since its file contains none. For a vector per text use "
            "jaxmix.models.sentence_embeddings, or hidden[:, 0]."
        ),
    ):
        model.pooled(jnp.zeros((1, 2, 12)))
    with_heads = {
        **in_old_names,
        "cls.predictions.bias": np.zeros(23),
        "cls.seq_relationship.bias": np.zeros(2),
    }
    with pytest.raises(CheckpointError) as caught:
        from_torch(config, {**with_heads, "classifier.bias": np.zeros(2)}, ignore=["cls"])
    message = (
        "with 2 layers:\n  unused: classifier.bias\nIs it a complete checkpoint of an encoder of"
    )
    assert message in str(
        caught.value
    ) and "To skip a head, name its modules, such as ignore=['cls']" in str(caught.value)
    assert from_torch(config, with_heads, ignore=["cls"]).config.pooler


def test_invalid_config_fields_are_refused() -> None:
    config = tiny.config("bert", layer_norm_eps=1e-6, classifier_dropout=0.1)
    assert (config.layer_norm_eps, config.type_vocab_size, config.activation) == (1e-6, 2, "gelu")
    with pytest.raises(UnsupportedError) as caught:
        tiny.config("bert", is_decoder=True, position_embedding_type="relative_key", hidden_act="x")
    message = str(caught.value)
    assert (
        "is_decoder = True: attention would be causal, but BERT is only supported as an" in message
    )
    assert "position_embedding_type = 'relative_key': expected 'absolute'" in message
    assert "hidden_act = 'x': expected one of silu" in message
    message = (
        "config.json: invalid fields:\n  hidden_size = 12 is not a multiple of "
        "num_attention_heads = 5\nWas the file edited?"
    )
    with pytest.raises(CheckpointError, match=full_text(message)):
        tiny.config("bert", num_attention_heads=5)


def test_invalid_arguments_are_refused() -> None:
    model, tokens = tiny.model("bert"), tiny.tokens()
    with pytest.raises(
        ShapeError,
        match=full_text(
            "tokens are int32 with shape (9,), expected integers with "
            "shape (rows, tokens). For a single text use tokens[None]."
        ),
    ):
        model(tokens[0])
    message = "mask: the shape is (9,), expected that of the tokens (2, 9)."
    with pytest.raises(ShapeError, match=full_text(message)):
        model(tokens, mask=jnp.ones(9, bool))
    with pytest.raises(
        ShapeError,
        match=full_text("token_types: the shape is (2, 8), expected that of the tokens (2, 9)."),
    ):
        model(tokens, token_types=tokens[:, 1:])
    with pytest.raises(
        ShapeError,
        match=full_text(
            "mask is int32, expected bool, false for padding. Use attention_mask == 1 for a "
            "tokenizer's attention_mask."
        ),
    ):
        model(tokens, mask=jnp.ones_like(tokens))
    with pytest.raises(
        ShapeError,
        match=full_text(
            "tokens have shape (2, 15), but this BERT has only 14 positions. Truncate the text."
        ),
    ):
        model(tiny.tokens(count=15))
