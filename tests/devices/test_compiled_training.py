"""Gradients of every family as the TPU's own compiler makes them, without a TPU."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

import jaxmix

from .compiled import written
from .compilers import compiled
from .test_compiled import needs_compiler
from .test_compiled_families import KINDS, MODULE, adapter, base, check, forward, of_kinds, tokens

# Rebase has nothing to train.
TRAINED = [kind for kind in KINDS if kind != "Rebase"]
# Kinds whose gradient passes through an array of the weight's size: they train a whole weight,
# multiply with the base's weight or divide by its norms, or decompose it.
WHOLE = {"DoRA", "Normed", "Together", "Delta", "Replace"} | {
    "FRoD",
    "GLoRA",
    "HiRA",
    "KaSA",
    "RandLoRA",
}


@needs_compiler
@pytest.mark.parametrize("on", ["v5e", pytest.param("v6e", marks=pytest.mark.thorough)])
@pytest.mark.parametrize("kind", of_kinds(TRAINED))
def test_gradients_of_adapters(kind: str, on: str) -> None:
    """There is no gradient of the base, and no other float32 array of the weight's size."""
    values, whole = jaxmix.trainable(adapter(kind))

    def loss(values: Any, whole: Any, params: Any, x: Any) -> Any:
        leaves = jaxmix.attach(params, whole(values))
        y = jaxmix.factored(forward, "factored")(leaves, x)
        return jnp.mean(y.astype(jnp.float32) ** 2)

    def slopes(donated: None, values: Any, whole: Any, params: Any, x: Any) -> Any:
        return jax.grad(loss)(values, whole, params, x)

    program = compiled(slopes, None, values, whole, base(), tokens(), on=on)
    check(program.text)
    out, into = MODULE.shape
    sizes = written(program.text, "f32", out * into)
    assert bool(sizes) == (kind in WHOLE)
