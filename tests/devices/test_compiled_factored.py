"""factored's programs as the TPU's own compiler makes them."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import jaxmix
from jaxmix import Adapter
from jaxmix.families import LoHa, LoRA

from .tpu_programs import TOPOLOGIES, compiled, cycles, needs_compiler

SIZE = 2048


def draw(*shape: int) -> Any:
    return np.ones(shape, np.float32)


def run(params: Any, x: Any) -> Any:
    return x @ params["a.weight"].T


PARAMS = {"a.weight": np.ones((SIZE, SIZE), jnp.bfloat16)}


def ratio(update: Any, tokens: int, topology: str) -> float:
    """The cycles with an adapter over those of the base."""
    x = np.ones((tokens, SIZE), jnp.bfloat16)
    leaves = jaxmix.attach(PARAMS, Adapter({"a": update}, 0.7))
    text = compiled(jaxmix.factored(run), leaves, x, topology=topology)
    assert "f64[" not in text and "host" not in text.lower().split("entry ")[0].split("\n")[0]
    return cycles(text) / cycles(compiled(run, PARAMS, x, topology=topology))


@needs_compiler
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_loha_stays_thin_at_many_tokens(topology: str) -> None:
    pair = draw(SIZE, 8), draw(8, SIZE)
    update = LoHa(*pair, *pair, 1.0)  # pyright: ignore[reportCallIssue]
    assert ratio(update, 2048, topology) <= 1.35


@needs_compiler
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_dora_reads_the_norms_that_attach_held(topology: str) -> None:
    """The norms in the program are in a branch that is taken only if the arrays changed."""
    update = LoRA(draw(16, SIZE), draw(SIZE, 16), 1.0, draw(SIZE))
    assert ratio(update, 128, topology) <= 2.0
