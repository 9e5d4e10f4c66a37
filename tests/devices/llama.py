"""A Llama's linear layers as shapes, adapters for all of them, and its matrix products."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxmix import Adapter

from ..benchmarks.chips import Llama

__all__ = ["LLAMA_8B", "adapter", "forward", "layers", "vocabulary"]

# The config.json of meta-llama/Llama-3.1-8B.
LLAMA_8B = Llama("8B", 4096, 32, 1024, 14336, 128256)
_NAMES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_Weights = dict[str, jax.ShapeDtypeStruct]


def layers(model: Llama, count: int, sharding: Any = None, dtype: Any = jnp.bfloat16) -> _Weights:
    """Returns the weights (out, in) of the first layers."""
    return {
        f"layers.{i}.{name}.weight": jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
        for i in range(count)
        for name, shape in zip(_NAMES, model.linears, strict=True)
    }


def vocabulary(model: Llama, sharding: Any = None, dtype: Any = jnp.bfloat16) -> _Weights:
    """Returns the embedding and the head."""
    each = jax.ShapeDtypeStruct((model.vocab, model.hidden), dtype, sharding=sharding)
    return {"embed.weight": each, "head.weight": each}


def adapter(
    weights: Mapping[str, Any], update: Callable[[tuple[int, int]], Any], name: str
) -> Adapter:
    """Returns an adapter for all weights of layers.

    Args:
        weights: The weights by name.
        update: Makes an update for a weight (out, in).
        name: The adapter's name.
    """
    made = {
        weight.removesuffix(".weight"): update(leaf.shape)
        for weight, leaf in weights.items()
        if weight.startswith("layers")
    }
    return Adapter(made, 0.7, name)


def forward(params: Any, x: Any) -> Any:
    """The layers' matrix products; attention itself has no weights."""
    for i in range(sum(name.endswith(_NAMES[0] + ".weight") for name in params)):
        q, k, v, o, gate, up, down = (params[f"layers.{i}.{name}.weight"].T for name in _NAMES)
        few = x @ k + x @ v
        heads = jnp.concatenate([few] * (q.shape[1] // few.shape[-1]), -1)
        x = x + jnp.tanh(x @ q + heads) @ o
        x = x + (jax.nn.silu(x @ gate) * (x @ up)) @ down
    return x
