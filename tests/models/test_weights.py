"""Conversion from PyTorch's names to the tree and back, and the tensors that are refused."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxmix.errors import CheckpointError, ShapeError, UnsupportedError
from jaxmix.models import from_torch, load, to_torch

from ..messages import full_text
from . import tiny
from .tiny import write


@pytest.mark.parametrize("kind", tiny.KINDS)
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_weights_round_trip(kind: str, dtype: Any) -> None:
    """Tensors of NumPy and JAX round-trip bit for bit."""
    config = tiny.config(kind)
    tensors = tiny.tensors(config, dtype=dtype)
    converted = to_torch(from_torch(config, tensors))
    assert sorted(converted) == sorted(tensors)
    for name, leaf in converted.items():
        assert leaf.dtype == dtype
        np.testing.assert_array_equal(leaf, tensors[name])
    converted_twice = to_torch(from_torch(config, converted))
    assert jax.tree.all(jax.tree.map(jnp.array_equal, converted, converted_twice))


def test_kernel_is_the_transposed_weight() -> None:
    config = tiny.config()
    tensors = tiny.tensors(config)
    model = from_torch(config, tensors)
    kernel = model.model.layers[1].self_attn.k_proj.kernel[...]
    np.testing.assert_array_equal(kernel, tensors["model.layers.1.self_attn.k_proj.weight"].T)


def test_dtype_casts_every_leaf() -> None:
    config = tiny.config()
    tensors = tiny.tensors(config)
    cast_tensors = to_torch(from_torch(config, tensors, dtype=jnp.bfloat16))
    for name, leaf in cast_tensors.items():
        np.testing.assert_array_equal(leaf, tensors[name].astype(ml_dtypes.bfloat16))
    with jax.enable_x64(True):
        tensors64 = to_torch(from_torch(config, tensors, dtype=jnp.float64))
        assert {leaf.dtype for leaf in tensors64.values()} == {np.dtype(np.float64)}


def test_arrays_of_the_caller_are_copied() -> None:
    config = tiny.config()
    tensors = tiny.tensors(config)
    model = from_torch(config, tensors)
    before = tiny.run(model, tiny.tokens())
    for tensor in tensors.values():
        tensor[...] = 0
    np.testing.assert_array_equal(tiny.run(model, tiny.tokens()), before)


def test_missing_and_unused_names_are_listed() -> None:
    config = tiny.config()
    tensors = tiny.tensors(config)
    del tensors["model.norm.weight"], tensors["lm_head.weight"]
    tensors["model.layers.2.mlp.up_proj.weight"] = np.zeros((18, 12))
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(2)
    message = (
        "tensors that do not fit a llama with 2 layers:\n  missing: lm_head.weight\n  missing: "
        "model.norm.weight\n  unused: model.layers.2.mlp.up_proj.weight\nIs it a complete"
    )
    with pytest.raises(CheckpointError) as caught:
        from_torch(config, tensors)
    assert str(caught.value).startswith(message)


def test_misshaped_tensors_are_listed() -> None:
    config = tiny.config()
    tensors = tiny.tensors(config)
    tensors["model.norm.weight"] = np.zeros(13, np.float32)
    name = "model.layers.0.mlp.down_proj.weight"
    tensors[name] = tensors[name].T
    with pytest.raises(ShapeError) as caught:
        from_torch(config, tensors)
    assert f"{name} has shape (18, 12), expected (12, 18)\n" in str(caught.value)
    assert "model.norm.weight has shape (13,), expected (12,)\n" in str(caught.value)
    assert "Is the config of another size of this model?" in str(caught.value)


def test_unsupported_dtypes_are_refused() -> None:
    config = tiny.config()
    tensors = tiny.tensors(config)
    tensors["lm_head.weight"] = np.zeros((23, 12), np.int8)
    with pytest.raises(
        UnsupportedError,
        match=full_text(
            "tensors of an unsupported dtype:\n"
            "  lm_head.weight is int8, expected one of float64, float32, "
            "float16, bfloat16\n"
            "Use an unquantized checkpoint, or pass dtype=jnp.float32."
        ),
    ):
        from_torch(config, tensors)
    tensors["lm_head.weight"] = np.zeros((23, 12), np.float64)
    message = (
        "tensors of an unsupported dtype:\n  lm_head.weight would be float64, which JAX rounds "
        "unless jax_enable_x64 is set\nUse an unquantized checkpoint, or pass dtype=jnp.float32."
    )
    with pytest.raises(UnsupportedError, match=full_text(message)):
        from_torch(config, tensors)
    assert from_torch(config, tensors, dtype=jnp.float32).dtype == jnp.float32


def test_tied_head_must_equal_the_embedding() -> None:
    """A file of a tied model may contain the head if it equals the embedding."""
    config = tiny.config("gemma")
    tensors = tiny.tensors(config)
    tied = from_torch(config, tensors)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    with_head = from_torch(config, tensors)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, to_torch(with_head), to_torch(tied)))
    tensors["lm_head.weight"][3, 4] += 1
    message = (
        "lm_head.weight differs from model.embed_tokens.weight, though the config ties them. Set "
        "tie_word_embeddings to false to use both."
    )
    with pytest.raises(CheckpointError, match=full_text(message)):
        from_torch(config, tensors)


def test_load_reads_shards(tmp_path: Path) -> None:
    """A sharded bfloat16 folder loads without torch; a folder that misfits its config does not."""
    tensors = tiny.tensors(tiny.config(), dtype=ml_dtypes.bfloat16)
    write(tmp_path, tensors, shards=3)
    model = load(tmp_path)
    assert model.dtype == jnp.bfloat16
    np.testing.assert_array_equal(to_torch(model)["lm_head.weight"], tensors["lm_head.weight"])
    assert load(tmp_path, dtype=jnp.float32).dtype == jnp.float32
    write(tmp_path / "other", tensors, num_hidden_layers=3)
    missing = sorted(name for name in tensors if name.startswith("model.layers.1."))
    lines = "".join(f"\n  missing: {name.replace('layers.1', 'layers.2')}" for name in missing)
    message = (
        f"{tmp_path}/other: tensors that do not fit a llama with 3 layers:{lines}\nIs it a "
        "complete checkpoint of a causal language model of this type, without tensors of adapters? "
        "To skip a head, name its modules, such as ignore=['cls']."
    )
    with pytest.raises(CheckpointError, match=full_text(message)):
        load(tmp_path / "other")
    save_file({**tensors, "lm_head.weight": np.zeros((24, 12))}, tmp_path / "model.safetensors")
    message = (
        f"{tmp_path}: tensors that do not fit the config:\n  lm_head.weight has shape (24, 12), "
        "expected (23, 12)\nIs the config of another size of this model?"
    )
    with pytest.raises(ShapeError, match=full_text(message)):
        load(tmp_path)
