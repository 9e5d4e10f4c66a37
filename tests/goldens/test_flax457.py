"""PEFT adapters compose into the params of transformers 4.57's Flax models (Linen) by name.

flax457.py recorded the models' params, the params that jaxmix composed, the models' outputs with
both, and PEFT's outputs with the same adapters unmerged.
"""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

import jaxmix
from jaxmix import models

from .archive import Archive

GOLDEN = Archive("flax457")
STACKS = GOLDEN.json("stacks.json")
_TORCH = {"kernel": "weight", "embedding": "weight", "scale": "weight", "bias": "bias"}


def nested(kind: str, name: str) -> Any:
    """Returns a Flax model's params."""
    flat = GOLDEN.tensors(f"{kind}/{name}.safetensors")
    return unflatten_dict({tuple(path.split(".")): jnp.asarray(x) for path, x in flat.items()})


def mix(kind: str, folder: Path) -> list[Any]:
    """Returns the adapters in order of application."""
    root = GOLDEN.unpack(folder) / kind
    return [jaxmix.load(root / name) for name in STACKS[kind]]


def module(kind: str, params: Any) -> Any:
    """Returns our model with these params; a Flax kernel is the transpose of PyTorch's weight."""
    tensors = {}
    leaves: dict[Any, Any] = flatten_dict(params)
    for path, leaf in leaves.items():
        name = ".".join([*path[:-1], _TORCH[path[-1]]])
        tensors[name] = leaf.T if path[-1] == "kernel" else leaf
    return models.from_torch(models.read_config(GOLDEN.json("configs.json")[kind]), tensors)


@nnx.jit
def run(model: Any, tokens: Any, mask: Any) -> Any:
    """Returns what the golden records: hidden states or logits."""
    if isinstance(model, models.Bert):
        return model(tokens, mask=mask)
    # Flax's GPT-2 numbers the positions through padding on the right, which has no effect.
    return model(tokens, positions=jnp.where(mask, jnp.arange(tokens.shape[1])[None], -1))


def error(output: Any, expected: np.ndarray, mask: np.ndarray) -> float:
    """Returns the largest difference outside the padding, relative to the largest output."""
    return float(np.abs(np.asarray(output) - expected)[mask].max() / np.abs(expected).max())


@pytest.mark.parametrize("kind", STACKS)
def test_linen_params_take_peft_adapters(kind: str, tmp_path: Path) -> None:
    with jax.enable_x64(True):
        truth = GOLDEN.tensors(f"{kind}/truth.safetensors")
        tokens, mask = truth["tokens"].astype(np.int32), truth["mask"]
        base, adapters = nested(kind, "base"), mix(kind, tmp_path)
        composed = jaxmix.compose(base, adapters)
        # The params composed today are those that the Flax model ran with.
        recorded = nested(kind, "composed")
        close = partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-12)
        jax.tree.map(close, composed, recorded)
        # The Flax model's outputs equal PEFT's, and our model's, which gets the updates before or
        # after the conversion.
        assert error(truth["flax_composed"], truth["peft"], mask) < 1e-12
        assert error(truth["flax_base"], truth["peft"], mask) > 1e-2
        ours = module(kind, base)
        assert error(run(ours, tokens, mask), truth["flax_base"], mask) < 1e-12
        for model in (module(kind, composed), jaxmix.compose(ours, adapters)):
            assert error(run(model, tokens, mask), truth["flax_composed"], mask) < 1e-12


def test_tree_below_params_composes_alike(tmp_path: Path) -> None:
    """A tree as ``Module.apply`` takes it gets the same leaves, also in 32 bits."""
    base, adapters = nested("gpt2", "base"), mix("gpt2", tmp_path)
    bare = jaxmix.compose(base, adapters)
    below = jaxmix.compose({"params": base}, adapters)["params"]
    assert jax.tree.all(jax.tree.map(jnp.array_equal, bare, below))
