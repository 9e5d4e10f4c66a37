"""Splits a module into its structure and arrays, without allocating the arrays."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

__all__ = ["LeafPath", "assemble", "skeleton"]

# The path of a leaf, such as ("model", "layers", 0, "self_attn", "q_proj", "kernel").
LeafPath = tuple[Any, ...]
Model = TypeVar("Model", bound=nnx.Module)


def skeleton(
    module: Callable[..., Model], config: Any
) -> tuple[nnx.GraphDef[Model], dict[LeafPath, Any]]:
    """Returns a model's graph, and the variables by path, with shapes but without arrays."""
    empty = nnx.eval_shape(lambda: module(config, dtype=jnp.float32, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(empty)
    return graph, {path: variable for path, variable in nnx.to_flat_state(state)}


def assemble(
    graph: nnx.GraphDef[Model], empty: Mapping[LeafPath, Any], leaves: Mapping[LeafPath, Array]
) -> Model:
    """Returns the model of a `skeleton` with the given leaves, one for each path."""
    filled = [(path, variable.replace(leaves[path])) for path, variable in empty.items()]
    return nnx.merge(graph, nnx.from_flat_state(filled))
