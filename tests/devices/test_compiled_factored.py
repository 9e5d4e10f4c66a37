"""factored's programs as the TPU's own compiler makes them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmix
from jaxmix import Adapter
from jaxmix.families import LoHa, LoRA
from jaxmix.unmerged.attaching import is_factored

from .tpu_programs import TOPOLOGIES, compiled, cycles, needs_compiler

OUT, IN = 14336, 4096


def draw(*shape: int) -> Any:
    return jax.ShapeDtypeStruct(shape, np.float32)


def run(params: Any, x: Any) -> Any:
    return x @ params["a.weight"].T


PARAMS = {"a.weight": jax.ShapeDtypeStruct((OUT, IN), jnp.bfloat16)}


def attached(params: Any, adapter: Adapter) -> Any:
    """An attached tree with the norms that `attach` holds for known arrays."""
    leaves = jaxmix.attach(params, adapter)
    return jax.tree.map(
        lambda leaf: leaf.with_norms() if is_factored(leaf) else leaf, leaves, is_leaf=is_factored
    )


def ratio(update: Any, tokens: int, topology: str) -> float:
    """The cycles with an adapter over those of the base."""
    x = jax.ShapeDtypeStruct((tokens, IN), jnp.bfloat16)
    leaves = jax.eval_shape(attached, PARAMS, Adapter({"a": update}, 0.7))
    text = compiled(jaxmix.factored(run), leaves, x, topology=topology)
    for operation in ("f64[", "infeed", "outfeed", " sort("):
        assert operation not in text, operation
    return cycles(text) / cycles(compiled(run, PARAMS, x, topology=topology))


@needs_compiler
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_loha_stays_thin_at_many_tokens(topology: str) -> None:
    pair = draw(OUT, 8), draw(8, IN)
    update = LoHa(*pair, *pair, 1.0)  # pyright: ignore[reportCallIssue]
    assert ratio(update, 2048, topology) <= 1.35


@needs_compiler
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_dora_reads_the_norms_that_attach_held(topology: str) -> None:
    """The norms in the program are in a branch that is taken only if the arrays changed."""
    update = LoRA(draw(16, IN), draw(OUT, 16), 1.0, draw(OUT))
    assert ratio(update, 128, topology) <= 2.0
