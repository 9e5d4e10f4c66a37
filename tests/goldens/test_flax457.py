"""Linen: the params of transformers 4.57's Flax models take PEFT's adapters, found by their names.

Recorded by flax457.py: the models' params, jaxmix's in their place, what the models computed with
both, and what PEFT computes with the same adapters unmerged.
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
    """A Flax model's params."""
    flat = GOLDEN.tensors(f"{kind}/{name}.safetensors")
    return unflatten_dict({tuple(path.split(".")): jnp.asarray(x) for path, x in flat.items()})


def mix(kind: str, folder: Path) -> list[jaxmix.Adapter]:
    """The adapters, in their order."""
    root = GOLDEN.unpack(folder) / kind
    return [jaxmix.load(root / name) for name in STACKS[kind]]


def module(kind: str, params: Any) -> Any:
    """Our own model with these params: a kernel of theirs is PyTorch's transpose, also in GPT-2."""
    tensors = {}
    leaves: dict[Any, Any] = flatten_dict(params)
    for path, leaf in leaves.items():
        name = ".".join([*path[:-1], _TORCH[path[-1]]])
        tensors[name] = leaf.T if path[-1] == "kernel" else leaf
    return models.from_torch(models.read_config(GOLDEN.json("configs.json")[kind]), tensors)


@nnx.jit
def run(model: Any, tokens: Any, mask: Any) -> Any:
    """What the golden holds: hidden states, or logits."""
    if isinstance(model, models.Bert):
        return model(tokens, mask=mask)
    # Their GPT-2 counts positions through padding on the right; nobody sees it.
    return model(tokens, positions=jnp.where(mask, jnp.arange(tokens.shape[1])[None], -1))


def error(found: Any, expected: np.ndarray, mask: np.ndarray) -> float:
    """The largest difference at tokens that are no padding, relative to the largest number."""
    return float(np.abs(np.asarray(found) - expected)[mask].max() / np.abs(expected).max())


@pytest.mark.parametrize("kind", STACKS)
def test_linen(kind: str, tmp_path: Path) -> None:
    with jax.enable_x64(True):
        truth = GOLDEN.tensors(f"{kind}/truth.safetensors")
        tokens, mask = truth["tokens"].astype(np.int32), truth["mask"]
        base, adapters = nested(kind, "base"), mix(kind, tmp_path)
        composed = jaxmix.compose(base, adapters)
        # Today's params are those that the Flax model ran with.
        recorded = nested(kind, "composed")
        close = partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-12)
        jax.tree.map(close, composed, recorded)
        # What it computed is what PEFT does, and what our model does, from either end.
        assert error(truth["flax_composed"], truth["peft"], mask) < 1e-12
        assert error(truth["flax_base"], truth["peft"], mask) > 1e-2
        ours = module(kind, base)
        assert error(run(ours, tokens, mask), truth["flax_base"], mask) < 1e-12
        for model in (module(kind, composed), jaxmix.compose(ours, adapters)):
            assert error(run(model, tokens, mask), truth["flax_composed"], mask) < 1e-12


def test_a_tree_below_params(tmp_path: Path) -> None:
    """As ``Module.apply`` takes it, and in 32 bits: the same leaves."""
    base, adapters = nested("gpt2", "base"), mix("gpt2", tmp_path)
    bare = jaxmix.compose(base, adapters)
    below = jaxmix.compose({"params": base}, adapters)["params"]
    assert jax.tree.all(jax.tree.map(jnp.array_equal, bare, below))
