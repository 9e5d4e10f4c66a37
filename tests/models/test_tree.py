"""A model's structure without its arrays, and the model of given arrays."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxmix.models import Decoder
from jaxmix.models.tree import assemble, skeleton

from . import tiny


def test_a_skeleton_has_shapes_only() -> None:
    """So a model of any size has one, here with a matrix of 4 TB."""
    config = tiny.config(vocab_size=10**6, hidden_size=10**6)
    _, empty = skeleton(Decoder, config)
    embedding = empty["model", "embed_tokens", "embedding"]
    assert embedding.shape == (10**6, 10**6)
    assert all(isinstance(leaf.get_value(), jax.ShapeDtypeStruct) for leaf in empty.values())


def test_an_assembled_model_has_the_given_arrays() -> None:
    """Themselves, by path, in whatever order they are given; two models share nothing else."""
    graph, empty = skeleton(Decoder, tiny.config())
    leaves = {
        path: jnp.asarray(np.full(leaf.shape, i, np.float16))
        for i, (path, leaf) in enumerate(reversed(empty.items()))
    }
    model, other = (assemble(graph, empty, leaves) for _ in range(2))
    found = {path: leaf[...] for path, leaf in nnx.to_flat_state(nnx.state(model))}
    assert found.keys() == leaves.keys()
    assert all(found[path] is leaf for path, leaf in leaves.items())
    other.lm_head.kernel[...] = jnp.zeros((12, 23), jnp.float16)
    assert model.lm_head.kernel[...] is leaves["lm_head", "kernel"]
