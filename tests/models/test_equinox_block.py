"""An Equinox copy of a BERT block takes PEFT's adapters and matches our NNX block."""

from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jaxmix

from ..goldens.test_flax457 import mix, module, nested

HEADS, PREFIX = 3, "encoder.layer.0."


class Output(eqx.Module):
    """A linear layer, its residual connection and a norm."""

    dense: eqx.nn.Linear
    LayerNorm: eqx.nn.LayerNorm

    def __call__(self, y: jax.Array, x: jax.Array) -> jax.Array:
        return jax.vmap(self.LayerNorm)(jax.vmap(self.dense)(y) + x)


class Block(eqx.Module):
    """A BERT block for one sequence, with Equinox's weights (out, in)."""

    attention: dict[str, Any]
    intermediate: dict[str, eqx.nn.Linear]
    output: Output

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        projections = self.attention["self"]
        q, k, v = (
            jax.vmap(projections[name])(x).reshape(len(x), HEADS, -1)
            for name in ("query", "key", "value")
        )
        scores = jnp.einsum("thd,shd->hts", q, k) / np.sqrt(q.shape[-1])
        weights = jax.nn.softmax(jnp.where(mask[None, None, :], scores, -jnp.inf), axis=-1)
        attended = jnp.einsum("hts,shd->thd", weights, v).reshape(x.shape)
        x = self.attention["output"](attended, x)
        hidden = jax.nn.gelu(jax.vmap(self.intermediate["dense"])(x), approximate=False)
        return self.output(hidden, x)


def equinox_copy_of(block: Any) -> Block:
    """Returns an Equinox copy of our NNX block."""

    def linear(source: Any) -> eqx.nn.Linear:
        kernel, key = source.kernel[...], jax.random.key(0)
        copy = eqx.nn.Linear(*kernel.shape, key=key)
        leaves = (kernel.T, source.bias[...])
        return eqx.tree_at(lambda layer: (layer.weight, layer.bias), copy, leaves)

    def output(source: Any) -> Output:
        norm = source.LayerNorm
        copy = eqx.nn.LayerNorm(norm.scale.shape, eps=norm.epsilon)
        leaves = (norm.scale[...], norm.bias[...])
        copy = eqx.tree_at(lambda layer: (layer.weight, layer.bias), copy, leaves)
        return Output(linear(source.dense), copy)

    projections = block.attention.self
    linear_layers = {name: linear(getattr(projections, name)) for name in ("query", "key", "value")}
    attention = {"self": linear_layers, "output": output(block.attention.output)}
    return Block(attention, {"dense": linear(block.intermediate.dense)}, output(block.output))


def updates_in_block(adapter: jaxmix.Adapter) -> dict[str, Any]:
    """Returns the first block's updates by the names inside the block."""
    items = adapter.updates.items()
    return {site.removeprefix(PREFIX): update for site, update in items if site.startswith(PREFIX)}


def test_equinox_block_matches_nnx(tmp_path: Path) -> None:
    """LoRA, LoHa, IA3 and OFT give the same outputs in 64 bits."""
    with jax.enable_x64(True):
        model, adapters = module("bert", nested("bert", "base")), mix("bert", tmp_path)
        block_adapters = [
            jaxmix.Adapter(updates_in_block(adapter), name=adapter.name) for adapter in adapters
        ]
        rng = np.random.default_rng(0)
        x = jnp.asarray(rng.normal(size=(2, 9, 12)))
        mask = jnp.asarray(np.arange(9)[None] < np.array([[9], [6]]))
        attention_mask = jnp.broadcast_to(mask[:, None, :], (2, 9, 9))
        nnx_block = nnx.jit(lambda block: block(x, attention_mask))
        eqx_block = eqx.filter_jit(lambda block: jax.vmap(block)(x, mask))
        base = equinox_copy_of(model.encoder.layer[0])
        base_outputs = nnx_block(model.encoder.layer[0])
        np.testing.assert_allclose(eqx_block(base), base_outputs, rtol=1e-12, atol=1e-12)
        composed = jaxmix.compose(base, block_adapters)
        assert isinstance(composed, Block)
        expected = nnx_block(module("bert", nested("bert", "composed")).encoder.layer[0])
        np.testing.assert_allclose(eqx_block(composed), expected, rtol=1e-12, atol=1e-12)
        assert jnp.abs(expected - base_outputs).max() > 1e-2
